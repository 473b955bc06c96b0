// From PTX text to ptx.h. The grammar is that of the PTX ISA manual, as far as nvcc and Triton use it.
#include <algorithm>
#include <charconv>
#include <map>
#include <string_view>
#include <tuple>

#include "scan.h"

namespace ptx {
namespace {

class Parser : Scanner {
 public:
  Parser(const std::string& text, const std::string& name) : Scanner(text, name) { module_.name = name; }

  Module run() {
    find_functions();
    while (skip(), at_ < text_.size()) top_level();
    return std::move(module_);
  }

 private:
  // ---- outside of kernels

  void top_level() {
    const std::string directive = word(true);
    if (directive == ".version" || directive == ".address_size") return skip_line();
    if (directive == ".file") return file();
    if (directive == ".target") {
      module_.target = word(false);
      return skip_line();
    }
    if (directive == ".section") {
      word(true);
      return skip_braces();
    }
    if (directive == ".visible" || directive == ".weak" || directive == ".extern") return;
    if (directive == ".entry") return entry();
    if (directive == ".global" || directive == ".const") return variable(module_.globals);
    if (directive == ".shared") return variable(module_.shared);
    if (directive == ".func") {  // find_functions() has seen it
      while (peek() != ';' && peek() != '{') step();
      return peek() == ';' ? step() : skip_braces();
    }
    fail("unknown directive " + directive);
  }

  // Where the functions of the module are, which may be called before they are defined.
  void find_functions() {
    size_t counted = 0;
    for (size_t at = text_.find(".func"); at != std::string::npos; at = text_.find(".func", at + 1)) {
      line_ += static_cast<int>(std::count(text_.begin() + counted, text_.begin() + at, '\n'));
      counted = at_ = at;
      const int line = line_;
      word(true);
      Function f;
      if (take('(')) f.results = parameter_names();
      const std::string name = word(false);
      if (take('(')) f.parameters = parameter_names();
      while (skip(), peek() == '.') word(true);
      f.at = at_;
      f.line = line_;
      if (peek() == '{') functions_[name] = f;
      line_ = line;
    }
    at_ = 0;
    line_ = 1;
  }

  // `.param .b64 a, .param .b64 b)`
  std::vector<std::string> parameter_names() {
    std::vector<std::string> names;
    while (!take(')')) {
      if (word(true) != ".param") fail("expected .param");
      names.push_back(declaration().name);
      take(',');
    }
    return names;
  }

  // `.file 1 "path"`: the last part of the path is kept.
  void file() {
    const int number = static_cast<int>(integer());
    const size_t end = text_.find('\n', at_);
    const std::string line = text_.substr(at_, end - at_);
    const size_t last = line.rfind('"'), first = line.rfind('"', last - 1);
    const std::string path = line.substr(first + 1, last - first - 1);
    module_.files[number] = path.substr(path.rfind('/') + 1);
    skip_line();
  }

  // `.align 4 .b8 name[12] = {1, 2}`, behind its state space. Ends after ';' or before ',' and ')'.
  Variable declaration() {
    Variable v;
    while (skip(), peek() == '.') {
      const std::string part = word(true).substr(1);
      if (part == "align") {
        v.align = integer();
      } else if (part != "ptr" && part != "global" && part != "const" && part != "attribute") {
        v.type = part;
      }
    }
    const uint64_t element = bits_of(v.type) / 8;
    v.align = std::max(v.align, element);
    v.name = word(false);
    v.bytes = element;
    while (take('[')) {
      if (take(']')) {
        v.unsized = true;
        v.bytes = 0;
      } else {
        v.bytes *= integer();
        expect(']');
      }
    }
    if (take('=')) initial(v, element);
    return v;
  }

  void initial(Variable& v, uint64_t element) {
    std::vector<uint64_t> values;
    if (take('{')) {
      do values.push_back(number().bits);
      while (take(','));
      expect('}');
    } else {
      values.push_back(number().bits);
    }
    v.initial.assign(v.bytes, 0);
    for (size_t i = 0; i < values.size() * element && i < v.bytes; ++i) {
      v.initial[i] = static_cast<uint8_t>(values[i / element] >> (i % element * 8));
    }
  }

  void variable(std::vector<Variable>& list) {
    list.push_back(declaration());
    expect(';');
  }

  // ---- kernels

  void entry() {
    Entry e;
    e.name = word(false);
    if (take('(')) {
      while (!take(')')) {
        if (word(true) != ".param") fail("expected .param");
        e.parameters.push_back(declaration());
        take(',');
      }
    }
    while (skip(), peek() == '.') bounds(e);
    skip();
    if (peek() != '{') {  // a declaration
      expect(';');
      return;
    }
    entry_ = &e;
    body(-1);
    module_.entries.push_back(std::move(e));
  }

  void bounds(Entry& e) {
    const std::string directive = word(true);
    uint64_t values[3] = {1, 1, 1};
    for (int i = 0; i < 3; ++i) {
      values[i] = integer();
      if (!take(',')) break;
    }
    if (directive != ".maxntid" && directive != ".reqntid") return;
    e.exact_threads = directive == ".reqntid";
    for (int i = 0; i < 3; ++i) e.threads[i] = static_cast<uint32_t>(values[i]);
  }

  void body(int parent) {
    expect('{');
    const int scope = static_cast<int>(entry_->scopes.size());
    entry_->scopes.push_back({parent, {}});
    while (!take('}')) {
      if (at_ >= text_.size()) fail("a brace is never closed");
      if (peek() == '{') {
        body(scope);
      } else if (peek() == '.') {
        directive(scope);
      } else {
        labelled(scope);
      }
    }
  }

  void directive(int scope) {
    const std::string name = word(true);
    if (name == ".loc") {
      file_ = static_cast<int>(integer());
      source_line_ = static_cast<int>(integer());
      return skip_line();
    }
    if (name == ".pragma") return skip_line();
    if (name == ".shared") return variable(entry_->shared);
    if (name == ".reg") return registers(scope);
    if (name == ".param") return call_variable(scope);
    if (name == ".local") fail("the kernel has local memory");
    fail("unknown directive " + name);
  }

  void registers(int scope) {
    std::string type = word(true).substr(1);
    do {
      const std::string name = word(false);
      int count = -1;
      if (take('<')) {
        count = static_cast<int>(integer());
        expect('>');
      }
      entry_->scopes[scope].registers.push_back({type, name, count});
    } while (take(','));
    expect(';');
  }

  // ---- calls: the function's body stands where it is called

  // What a call hands over is kept in a register.
  void call_variable(int scope) {
    const Variable v = declaration();
    expect(';');
    entry_->scopes[scope].registers.push_back({v.type, v.name, -1});
    handed_over_[v.name] = v.name;
  }

  std::vector<std::string> handed_over() {
    std::vector<std::string> names;
    while (!take(')')) {
      const std::string name = word(false);
      const auto found = handed_over_.find(name);
      if (found == handed_over_.end()) fail(name + " is nothing that a call can hand over");
      names.push_back(found->second);
      take(',');
    }
    return names;
  }

  // `call (result), name, (a, b);`, behind its opcode.
  void call(int scope) {
    std::vector<std::string> results, arguments;
    if (take('(')) {
      results = handed_over();
      expect(',');
    }
    const std::string name = word(false);
    if (take(',')) {
      expect('(');
      arguments = handed_over();
    }
    expect(';');
    const auto found = functions_.find(name);
    if (found == functions_.end()) fail("unknown function " + name);
    const Function& f = found->second;
    if (results.size() != f.results.size() || arguments.size() != f.parameters.size())
      fail("wrong number of arguments of " + name);
    if (std::count(suffix_.begin(), suffix_.end(), '.') == kDeepestCall) fail("calls of calls of calls");
    const auto here = std::make_tuple(at_, line_, file_, source_line_, handed_over_, suffix_);
    suffix_ += "." + std::to_string(++calls_);
    for (size_t i = 0; i < results.size(); ++i) handed_over_[f.results[i]] = results[i];
    for (size_t i = 0; i < arguments.size(); ++i) handed_over_[f.parameters[i]] = arguments[i];
    at_ = f.at;
    line_ = f.line;
    body(scope);
    entry_->labels.emplace_back(kEnd + suffix_, entry_->statements.size());
    std::tie(at_, line_, file_, source_line_, handed_over_, suffix_) = here;
  }

  // A statement of a function's body, or one that hands over: as it is where it is called.
  void inlined(Statement& s) {
    if (!suffix_.empty()) {
      const std::string base = s.opcode.substr(0, s.opcode.find('.'));
      if (base == "bra") s.operands.at(0).name += suffix_;
      if (base == "ret") {
        s.opcode = "bra";
        s.operands.resize(1);
        s.operands[0].name = kEnd + suffix_;
      }
    }
    const bool loads = s.opcode.rfind("ld.param.", 0) == 0;
    if (!loads && s.opcode.rfind("st.param.", 0) != 0) return;
    Text& place = s.operands.at(loads ? 1 : 0);
    const auto found = handed_over_.find(place.name);
    if (found == handed_over_.end()) return;
    const std::string type = s.opcode.substr(9);
    if (place.bits != 0 || type[0] == 'v') fail("a call hands over single numbers only");
    place = Text{};
    place.name = found->second;
    s.opcode = "mov.b" + std::to_string(bits_of(type));
  }

  void labelled(int scope) {
    Statement s;
    s.line = line_;
    s.scope = scope;
    s.file = file_;
    s.source_line = source_line_;
    if (take('@')) {
      s.guard_negated = take('!');
      s.guard = word(false);
      s.opcode = word(true);
    } else {
      s.opcode = word(true);
      if (take(':')) {
        entry_->labels.emplace_back(s.opcode + suffix_, entry_->statements.size());
        return;
      }
    }
    if (s.opcode == "call" || s.opcode == "call.uni") {
      if (!s.guard.empty()) fail("a call under a condition");
      return call(scope);
    }
    if (!take(';')) {
      do s.operands.push_back(operand());
      while (take(','));
      expect(';');
    }
    inlined(s);
    entry_->statements.push_back(std::move(s));
  }

  Text operand() {
    skip();
    Text value;
    if (peek() == '{') return vector();
    if (peek() == '[') return address();
    if (take('!')) {
      value.negated = true;
      value.name = word(true);
      return value;
    }
    if (std::isdigit(static_cast<unsigned char>(peek())) || peek() == '-') return number();
    value.name = word(true);
    if (peek() == '|') {
      Text pair;
      pair.kind = Text::kPair;
      step();
      pair.parts = {value, operand()};
      return pair;
    }
    return value;
  }

  Text vector() {
    Text value;
    value.kind = Text::kVector;
    expect('{');
    do value.parts.push_back(operand());
    while (take(','));
    expect('}');
    return value;
  }

  Text address() {
    Text value;
    value.kind = Text::kAddress;
    expect('[');
    skip();
    if (!std::isdigit(static_cast<unsigned char>(peek())) && peek() != '-') value.name = word(false);
    if (value.name.empty() || take('+')) {
      value.bits = integer();
    } else if (skip(), peek() == '-') {
      value.bits = integer();
    }
    expect(']');
    return value;
  }

  struct Function {
    size_t at = 0;  // of its body
    int line = 1;
    std::vector<std::string> results, parameters;
  };
  static constexpr const char* kEnd = "$end_of_call";
  static constexpr int kDeepestCall = 8;

  Module module_;
  Entry* entry_ = nullptr;
  int file_ = 0, source_line_ = 0;
  std::map<std::string, Function> functions_;
  // By the names of what calls hand over, in the function and where it is called, the registers that keep it.
  std::map<std::string, std::string> handed_over_;
  std::string suffix_;  // of labels in the body of a call
  int calls_ = 0;
};

}  // namespace

int bits_of(const std::string& type) {
  if (type == "pred") return 1;
  if (type == "f16x2" || type == "bf16x2") return 32;
  if (type == "bf16") return 16;
  if (type == "tf32") return 32;
  int bits = 0;
  const auto [end, error] = std::from_chars(type.data() + 1, type.data() + type.size(), bits);
  if (type.empty() || error != std::errc() || end != type.data() + type.size() || bits % 8 || bits > 128) {
    throw Fault("unknown type ." + type);
  }
  return bits;
}

Module parse(const std::string& text, const std::string& name) { return Parser(text, name).run(); }

}  // namespace ptx
