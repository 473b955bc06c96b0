// From statements to instructions: registers get places, names get addresses, opcodes get functions.
#include <algorithm>

#include "numbers/tensor_core.h"
#include "operands.h"

namespace ptx {
namespace {

struct Opcode {
  std::string whole;
  std::vector<std::string> parts;

  explicit Opcode(const std::string& text) : whole(text) {
    for (size_t first = 0, dot; first <= text.size(); first = dot + 1) {
      dot = std::min(text.find('.', first), text.size());
      parts.push_back(text.substr(first, dot - first));
    }
  }
  const std::string& base() const { return parts.front(); }
  const std::string& type() const { return parts.back(); }
  bool has(const char* part) const { return std::find(parts.begin(), parts.end(), part) != parts.end(); }
};

class Decoder : Operands {
 public:
  Decoder(const Module& module, const Entry& entry, const std::map<std::string, uint64_t>& symbols)
      : Operands(module, entry, symbols) {}

  std::unique_ptr<Program> run() {
    std::vector<uint32_t> starts;
    for (const Statement& s : entry_.statements) {
      starts.push_back(static_cast<uint32_t>(program_->code.size()));
      statement_ = &s;
      const size_t first = program_->code.size();
      statement();
      if (s.guard.empty()) continue;
      Text guard;
      guard.name = s.guard;
      guard.negated = s.guard_negated;
      const Operand* g = keep({predicate(guard)});
      for (size_t i = first; i < program_->code.size(); ++i) program_->code[i].guard = g;
    }
    starts.push_back(static_cast<uint32_t>(program_->code.size()));
    if (!entry_.statements.empty()) {
      statement_ = &entry_.statements.back();
      emit(trap_handler(), Class::kControl, {});  // for code that runs past its end
    }
    for (const auto& [instruction, label] : branches_) program_->code[instruction].target = starts[label];
    return std::move(program_);
  }

 private:
  // ---- statements

  void statement() {
    const Opcode op(statement_->opcode);
    const std::string& base = op.base();
    if (base == "bra") return branch();
    if (base == "ret" || base == "exit") return void(emit(exit_handler(), Class::kControl, {}));
    if (base == "trap") return void(emit(trap_handler(), Class::kControl, {}));
    if (base == "ld" || base == "ldu" || base == "st") return access(op);
    if (base == "atom" || base == "red") return atomic(op);
    if (base == "fence" || base == "membar") return fence(op);
    if (base == "bar" || base == "barrier") return barrier(op);
    if (base == "shfl") return shuffle(op);
    if (base == "vote") return vote(op);
    if (base == "redux") return reduction(op);
    if (base == "activemask")
      return void(emit(active_mask_handler(), Class::kWarp, {destination(text(0), 32)}));
    if (base == "cp") return copy(op);
    if (base == "ldmatrix") return matrix_load(op);
    if (base == "mma") return matrix_multiply(op);
    if (base == "setp") return compare(op);
    if (base == "selp") return select(op);
    if (op.type() == "pred") return predicates(op);
    if (base == "mov" && is_vector()) return regroup(op);
    if (base == "prefetch" || base == "prefetchu" || base == "nanosleep" || base == "discard") return;
    lane_by_lane(op.whole);
  }

  void lane_by_lane(const std::string& name) {
    std::vector<const Text*> texts;
    for (const Text& t : statement_->operands) texts.push_back(&t);
    lane_by_lane(name, texts);
  }

  void lane_by_lane(const std::string& name, const std::vector<const Text*>& texts) {
    const auto found = operations().find(name);
    if (found == operations().end()) fail("unknown instruction");
    const Operation& operation = found->second;
    if (texts.size() != operation.inputs.size() + 1) fail("wrong number of operands");
    std::vector<Operand> operands = {destination(*texts[0], operation.result)};
    for (size_t i = 0; i < operation.inputs.size(); ++i) {
      const Text& t = *texts[i + 1];
      operands.push_back(name.rfind("cvt.", 0) == 0 ? converted(t, operation.inputs[i])
                                                    : source(t, operation.inputs[i]));
    }
    emit(operation.handler, operation.type, operands);
  }

  // What cvt reads: of a register of 64 bits it may be the lower ones alone.
  Operand converted(const Text& t, int bits) {
    uint32_t number = 0;
    const bool is_register =
        t.kind == Text::kName && !is_special(t.name, number) && !addresses_.count(t.name);
    if (!is_register || bits == 64 || any_register(t).bits != 64) return source(t, bits);
    const Place p = new_place("b32");
    const Operand lower = {p.offset, p.number, 32, false, false};
    emit(operations().at("cvt.u32.u64").handler, Class::kMove, {lower, any_register(t)});
    return lower;
  }

  void branch() {
    const std::string& label = text(0).name;
    for (const auto& [name, statement] : entry_.labels) {
      if (name != label) continue;
      emit(branch_handler(), Class::kControl, {});
      branches_.emplace_back(program_->code.size() - 1, statement);
      return;
    }
    fail("unknown label " + label);
  }

  static Space space(const Opcode& op) {
    if (op.has("param")) return Space::kParameter;
    if (op.has("shared") || op.has("shared::cta")) return Space::kShared;
    return op.has("global") || op.has("const") ? Space::kGlobal : Space::kGeneric;
  }

  void access(const Opcode& op) {
    const bool is_store = op.base() == "st";
    const Text &value = text(is_store ? 1 : 0), &where = text(is_store ? 0 : 1);
    const std::vector<Text> parts = value.kind == Text::kVector ? value.parts : std::vector<Text>{value};
    std::vector<Operand> operands;
    for (const Text& t : parts) {
      const bool literal = t.kind != Text::kName || addresses_.count(t.name);
      operands.push_back(literal ? source(t, bits_of(op.type())) : any_register(t));
      if (operands.back().bits < bits_of(op.type()) && t.name != "_")
        fail(t.name + " is narrower than the access");
    }
    int64_t offset = 0;
    operands.push_back(address(where, offset));
    const Space where_to = space(op);
    if (is_store && op.has("release")) emit(fence_handler(!op.has("cta")), Class::kFence, {});
    const bool shared = where_to == Space::kShared;
    const Class type = where_to == Space::kParameter ? Class::kMove
                       : is_store                    ? (shared ? Class::kStoreShared : Class::kStoreGlobal)
                                                     : (shared ? Class::kLoadShared : Class::kLoadGlobal);
    const int count = static_cast<int>(parts.size());
    const bool strong = op.has("acquire") || op.has("release") || op.has("volatile") || op.has("relaxed");
    Instruction& i = emit(access_handler(where_to, is_store, op.type(), count), type, operands);
    i.offset = offset;
    const bool past_cache = strong || op.has("nc") || op.has("cg") || op.has("cv");
    i.number = is_store ? strong
                        : (op.has("nc") ? kConstant : 0) | (past_cache ? 0 : kCached) |
                              (op.has("acquire") ? kAcquire : 0);
    program_->reads_constants |= op.has("nc");
    program_->communicates |= strong && !shared;
  }

  void atomic(const Opcode& op) {
    const bool has_result = op.base() == "atom";
    int operation = -1;
    for (const std::string& part : op.parts) operation = std::max(operation, atomic_operation(part));
    if (operation < 0) fail("unknown instruction");
    const int bits = bits_of(op.type());
    std::vector<Operand> operands;
    size_t next = 0;
    if (has_result) operands.push_back(destination(text(next++), bits));
    int64_t offset = 0;
    operands.push_back(address(text(next++), offset));
    for (; next < statement_->operands.size(); ++next) operands.push_back(source(text(next), bits));
    const bool releases = op.has("release") || op.has("acq_rel");
    Instruction& i = emit(atomic_handler(space(op), op.type()), Class::kAtomic, operands);
    i.offset = offset;
    i.number = static_cast<uint32_t>(operation) | (has_result ? 256 : 0) | (releases ? 512 : 0) |
               (op.has("acquire") || op.has("acq_rel") ? 1024 : 0);
    program_->communicates |= space(op) != Space::kShared;
  }

  void fence(const Opcode& op) {
    const bool beyond = !op.has("cta");
    emit(fence_handler(beyond), Class::kFence, {});
    program_->communicates |= beyond;
  }

  void barrier(const Opcode& op) {
    if (op.has("warp")) return void(emit(warp_barrier_handler(), Class::kBarrier, {source(text(0), 32)}));
    if (!op.has("sync") || op.has("red")) fail("unknown instruction");
    if (text(0).kind != Text::kInteger || text(0).bits != 0 || statement_->operands.size() > 1) {
      fail("only barrier 0, for all threads, is known");
    }
    emit(barrier_handler(), Class::kBarrier, {});
  }

  void shuffle(const Opcode& op) {
    const Text& result = text(0);
    Text sink;
    sink.name = "_";
    const bool pair = result.kind == Text::kPair;
    emit(shuffle_handler(op.parts.at(2)), Class::kWarp,
         {destination(pair ? result.parts[0] : result, 32), predicate(pair ? result.parts[1] : sink),
          source(text(1), 32), source(text(2), 32), source(text(3), 32), source(text(4), 32)});
  }

  void vote(const Opcode& op) {
    const bool ballot = op.has("ballot");
    emit(vote_handler(op.parts.at(2)), Class::kWarp,
         {ballot ? destination(text(0), 32) : predicate(text(0)), predicate(text(1)), source(text(2), 32)});
  }

  void reduction(const Opcode& op) {
    emit(reduction_handler(op.parts.at(2), op.type()), Class::kWarp,
         {destination(text(0), 32), source(text(1), 32), source(text(2), 32)});
  }

  void copy(const Opcode& op) {
    if (op.has("commit_group")) return void(emit(commit_handler(), Class::kAsyncCopy, {}));
    if (op.has("wait_all")) {
      emit(wait_copies_handler(), Class::kAsyncCopy, {}).number = kAllLanes;
      return;
    }
    if (op.has("wait_group")) {
      emit(wait_copies_handler(), Class::kAsyncCopy, {}).number = static_cast<uint32_t>(text(0).bits);
      return;
    }
    if (!op.has("async") || !(op.has("ca") || op.has("cg"))) fail("unknown instruction");
    int64_t to = 0, from = 0;
    std::vector<Operand> operands = {address(text(0), to), address(text(1), from)};
    const bool has_size = statement_->operands.size() > 3;
    if (has_size) operands.push_back(source(text(3), 32));
    Instruction& i = emit(copy_handler(), Class::kAsyncCopy, operands);
    i.count = static_cast<uint8_t>(text(2).bits);
    if (i.count != 4 && i.count != 8 && i.count != 16) fail("a copy has 4, 8 or 16 bytes");
    i.offset = to;
    i.target = static_cast<uint32_t>(static_cast<int32_t>(from));
    i.number = has_size;
  }

  std::vector<Operand> registers(const Text& t, int bits, bool is_result) {
    std::vector<Operand> list;
    const std::vector<Text> parts = t.kind == Text::kVector ? t.parts : std::vector<Text>{t};
    for (const Text& part : parts) list.push_back(is_result ? destination(part, bits) : source(part, bits));
    return list;
  }

  void matrix_load(const Opcode& op) {
    if (!op.has("m8n8") || op.type() != "b16") fail("unknown instruction");
    std::vector<Operand> operands = registers(text(0), 32, true);
    const auto count = static_cast<uint8_t>(operands.size());
    if (count != (op.has("x4") ? 4 : op.has("x2") ? 2 : 1)) fail("wrong number of registers");
    int64_t offset = 0;
    operands.push_back(address(text(1), offset));
    Instruction& i = emit(matrix_load_handler(), Class::kLoadShared, operands);
    i.offset = offset;
    i.count = count;
    i.number = op.has("trans");
  }

  void matrix_multiply(const Opcode& op) {
    static const std::map<std::string, MmaShape> shapes = {{"m8n8k4", MmaShape::m8n8k4},
                                                           {"m16n8k4", MmaShape::m16n8k4},
                                                           {"m16n8k8", MmaShape::m16n8k8},
                                                           {"m16n8k16", MmaShape::m16n8k16}};
    static const std::map<std::string, MmaType> types = {{"f16", MmaType::f16},
                                                         {"bf16", MmaType::bf16},
                                                         {"tf32", MmaType::tf32},
                                                         {"f32", MmaType::f32},
                                                         {"f64", MmaType::f64}};
    // mma.sync.aligned.shape.row.col.d.a.b.c
    if (op.parts.size() != 10 || !op.has("row") || !op.has("col")) fail("unknown instruction");
    const auto shape = shapes.find(op.parts[3]);
    const auto accumulator = types.find(op.parts[6]), operand = types.find(op.parts[7]);
    if (shape == shapes.end() || accumulator == types.end() || operand == types.end() ||
        op.parts[8] != op.parts[7] || op.parts[9] != op.parts[6]) {
      fail("unknown instruction");
    }
    const MmaForm form{shape->second, operand->second, accumulator->second};
    const MmaRegisters counts = mma_registers(form);
    const int bits = operand->second == MmaType::f64 ? 64 : 32;
    std::vector<Operand> operands;
    const size_t expected[4] = {static_cast<size_t>(counts.c), static_cast<size_t>(counts.a),
                                static_cast<size_t>(counts.b), static_cast<size_t>(counts.c)};
    for (size_t k = 0; k < 4; ++k) {
      const std::vector<Operand> part = registers(text(k), bits, k == 0);
      if (part.size() != expected[k] || part.empty()) fail("wrong number of registers");
      operands.insert(operands.end(), part.begin(), part.end());
    }
    emit(matrix_multiply_handler(), Class::kTensor, operands).number =
        static_cast<uint32_t>(form.shape) | static_cast<uint32_t>(form.operand) << 8 |
        static_cast<uint32_t>(form.accumulator) << 16;
  }

  // setp.eq.s32 p, a, b; setp.eq.and.s32 p, a, b, c; either with p|q, where q is the opposite.
  void compare(const Opcode& op) {
    std::string name, combine;
    for (const std::string& part : op.parts) {
      if (part == "and" || part == "or" || part == "xor") {
        combine = part;
      } else {
        name += (name.empty() ? "" : ".") + part;
      }
    }
    const Text& result = text(0);
    const bool pair = result.kind == Text::kPair;
    const bool halves = op.type() == "f16x2" || op.type() == "bf16x2";
    if (halves) {
      if (!combine.empty() || !pair) fail("unknown instruction");
      const std::string rest = name.substr(5);
      lane_by_lane("setp.low." + rest, {&result.parts[0], &text(1), &text(2)});
      lane_by_lane("setp.high." + rest, {&result.parts[1], &text(1), &text(2)});
      return;
    }
    const auto found = operations().find(name);
    if (found == operations().end()) fail("unknown instruction");
    const Operation& operation = found->second;
    const Operand p = predicate(pair ? result.parts[0] : result);
    const Operand compared = combine.empty() && !pair ? p : new_predicate();
    emit(operation.handler, operation.type,
         {compared, source(text(1), operation.inputs[0]), source(text(2), operation.inputs[1])});
    if (pair) {
      const Operand q = predicate(result.parts[1]);
      const Operand opposite = combine.empty() ? q : new_predicate();
      emit(predicate_handler("not"), Class::kMove, {opposite, compared});
      if (!combine.empty()) emit(predicate_handler(combine), Class::kMove, {q, opposite, predicate(text(3))});
    }
    if (!combine.empty()) {
      emit(predicate_handler(combine), Class::kMove, {p, compared, predicate(text(3))});
    } else if (pair) {
      emit(predicate_handler("mov"), Class::kMove, {p, compared});
    }
  }

  void select(const Opcode& op) {
    const int bits = bits_of(op.type());
    emit(select_handler(bits), Class::kMove,
         {destination(text(0), bits), source(text(1), bits), source(text(2), bits), predicate(text(3))});
  }

  void predicates(const Opcode& op) {
    std::vector<Operand> operands;
    for (const Text& t : statement_->operands) operands.push_back(predicate(t));
    if (operands.size() != (op.base() == "mov" || op.base() == "not" ? 2 : 3))
      fail("wrong number of operands");
    emit(predicate_handler(op.base()), Class::kMove, operands);
  }

  bool is_vector() const { return text(0).kind == Text::kVector || text(1).kind == Text::kVector; }

  void regroup(const Opcode& op) {
    const int bits = bits_of(op.type());
    const bool packs = text(1).kind == Text::kVector;
    const std::vector<Text>& parts = text(packs ? 1 : 0).parts;
    const int part_bits = bits / static_cast<int>(parts.size());
    std::vector<Operand> operands;
    if (packs) operands.push_back(destination(text(0), bits));
    // Of a register of which only some bits matter, a compiler gives the other parts no value anywhere: all
    // their bits are set then, which is NaN, and the whole counts as written.
    const bool partly =
        packs && std::any_of(parts.begin(), parts.end(), [&](const Text& t) { return has_value(t); });
    for (const Text& t : parts) {
      if (partly && !has_value(t))
        operands.push_back(constant(~uint64_t{0}, part_bits));
      else
        operands.push_back(packs ? source(t, part_bits) : destination(t, part_bits));
    }
    if (!packs) operands.push_back(source(text(1), bits));
    const int count = static_cast<int>(parts.size());
    emit(packs ? pack_handler(count, bits) : unpack_handler(count, bits), Class::kMove, operands);
  }

  std::vector<std::pair<size_t, size_t>> branches_;  // instruction, statement that it goes to
};

}  // namespace

std::unique_ptr<Program> decode(const Module& module, const Entry& entry,
                                const std::map<std::string, uint64_t>& symbols) {
  return Decoder(module, entry, symbols).run();
}

std::string describe(const Program& program, const Statement& statement) {
  std::string text = statement.opcode + " (";
  const auto file = program.files->find(statement.file);
  if (file != program.files->end()) text += file->second + ":" + std::to_string(statement.source_line) + ", ";
  return text + "line " + std::to_string(statement.line) + " of the PTX)";
}

}  // namespace ptx
