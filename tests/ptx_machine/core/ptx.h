// What the parser makes of PTX text: entries, their parameters and variables, and their statements.
// Nothing here knows what an instruction does.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

// A kernel broke a rule, or the machine does not know something that the text says.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Text {
  enum Kind {
    kName,     // a register, a special register, a label or a variable
    kInteger,  // `bits` is its value, modulo 2^64
    kFloat,    // `bits` is its pattern; `wide` for 0d...
    kVector,   // `parts`
    kAddress,  // [name + bits], or [bits] without a name
    kPair,     // first|second
  };
  Kind kind = kName;
  std::string name;
  uint64_t bits = 0;
  bool wide = false;
  bool negated = false;  // !%p
  std::vector<Text> parts;
};

struct Statement {
  std::string guard;  // the predicate of `@%p`; empty without one
  bool guard_negated = false;
  std::string opcode;
  std::vector<Text> operands;
  int line = 0;                   // in the PTX text
  int file = 0, source_line = 0;  // of the last .loc before it
  int scope = -1;                 // index into Entry::scopes
};

struct Variable {
  std::string name;
  std::string type;  // "b8", "f32", ...
  uint64_t bytes = 0;
  uint64_t align = 1;
  bool unsized = false;  // `extern .shared x[]`: what the launch brings
  std::vector<uint8_t> initial;
};

// The registers of one pair of braces. `%r<5>` is kept as a prefix and a count.
struct Scope {
  int parent = -1;
  struct Registers {
    std::string type;
    std::string name;
    int count;  // -1: one register with just this name
  };
  std::vector<Registers> registers;
};

struct Entry {
  std::string name;
  std::vector<Variable> parameters;
  std::vector<Variable> shared;
  std::vector<Scope> scopes;
  std::vector<Statement> statements;
  std::vector<std::pair<std::string, size_t>> labels;  // name, index of the statement that follows
  uint32_t threads[3] = {0, 0, 0};                     // .maxntid or .reqntid; 0 where there is none
  bool exact_threads = false;                          // .reqntid
};

struct Module {
  std::string name;
  std::string target;
  std::vector<Variable> globals;
  std::vector<Variable> shared;
  std::vector<Entry> entries;
  std::map<int, std::string> files;  // by the number that .loc gives
};

// Throws Fault with the line where the text is no PTX, or PTX that the machine does not know.
Module parse(const std::string& text, const std::string& name);

int bits_of(const std::string& type);  // of "b8", "f32", "pred", ...

}  // namespace ptx
