// Where a kernel's names lie: registers, constants, variables in shared memory, parameters.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <string_view>

#include "operations.h"

namespace ptx {

constexpr uint64_t kRegisterBytes = kLanes * 4;

// In the order of Special.
constexpr std::string_view kSpecialNames[kSpecials] = {
    "%tid.x",   "%tid.y",       "%tid.z",       "%ntid.x",      "%ntid.y",      "%ntid.z",     "%ctaid.x",
    "%ctaid.y", "%ctaid.z",     "%nctaid.x",    "%nctaid.y",    "%nctaid.z",    "%laneid",     "%warpid",
    "%nwarpid", "%lanemask_eq", "%lanemask_lt", "%lanemask_le", "%lanemask_gt", "%lanemask_ge"};

// The half of the decoder that knows operands. It fills in the program that the other half gives
// instructions.
class Operands {
 protected:
  Operands(const Module& module, const Entry& entry, const std::map<std::string, uint64_t>& symbols)
      : entry_(entry), program_(std::make_unique<Program>()) {
    Program& p = *program_;
    p.entry = &entry;
    p.module = module.name;
    p.files = &module.files;
    p.register_bytes = kSpecials * kRegisterBytes;
    p.registers = 1 + kSpecials;
    for (const auto& [name, address] : symbols) addresses_[name] = {address, 64};
    lay_out_shared(module);
    lay_out_parameters();
    find_names();
  }

  struct Place {
    std::string type;
    uint32_t offset, number;
  };
  struct Symbol {
    uint64_t value;
    int bits;
  };

  [[noreturn]] void fail(const std::string& what) const {
    throw Fault(entry_.name + ", " + describe(*program_, *statement_) + ": " + what);
  }

  // ---- memory

  void lay_out_shared(const Module& module) {
    uint64_t at = kSharedStart, align = 16;
    std::vector<const Variable*> unsized;
    for (const auto* list : {&module.shared, &entry_.shared}) {
      for (const Variable& v : *list) {
        if (v.unsized) {
          unsized.push_back(&v);
          align = std::max(align, v.align);
          continue;
        }
        if (list == &module.shared && !uses(v.name)) continue;
        at = (at + v.align - 1) / v.align * v.align;
        program_->shared.push_back({at, v.bytes});
        addresses_[v.name] = {at, 32};
        program_->static_shared += v.bytes;
        at += v.bytes + kSharedGap;
      }
    }
    program_->dynamic_first = (at + align - 1) / align * align;
    for (const Variable* v : unsized) addresses_[v->name] = {program_->dynamic_first, 32};
  }

  bool uses(const std::string& name) const {
    const auto names = [&](const Text& t, const auto& self) -> bool {
      return t.name == name ||
             std::any_of(t.parts.begin(), t.parts.end(), [&](const Text& part) { return self(part, self); });
    };
    for (const Statement& s : entry_.statements) {
      for (const Text& t : s.operands) {
        if (names(t, names)) return true;
      }
    }
    return false;
  }

  void lay_out_parameters() {
    uint64_t at = 0;
    for (const Variable& v : entry_.parameters) {
      at = (at + v.align - 1) / v.align * v.align;
      program_->parameter_offsets.push_back(at);
      addresses_[v.name] = {at, 64};
      at += v.bytes;
    }
    program_->parameter_bytes = at;
  }

  // ---- operands

  const Operand* keep(std::vector<Operand> operands) {
    return program_->operands.emplace_back(std::move(operands)).data();
  }

  Operand constant(uint64_t value, int bits) {
    const bool wide = bits == 64;
    const auto key = std::make_pair(wide, wide ? value : value & 0xffffffffu);
    const auto [found, is_new] =
        constants_.try_emplace(key, static_cast<uint32_t>(program_->constants.size()));
    if (is_new) {
      std::vector<uint8_t>& pool = program_->constants;
      pool.resize(pool.size() + kRegisterBytes * (wide ? 2 : 1));
      for (int l = 0; l < kLanes; ++l) {
        std::memcpy(pool.data() + found->second + l * (wide ? 8 : 4), &value, wide ? 8 : 4);
      }
    }
    return {found->second, 0, static_cast<uint8_t>(bits), true, false};
  }

  // The scope, from this statement's outwards, that declares `name`.
  const Scope::Registers* declared(const std::string& name, int& scope) const {
    size_t digits = name.size();
    while (digits > 0 && std::isdigit(static_cast<unsigned char>(name[digits - 1]))) --digits;
    for (scope = statement_->scope; scope >= 0; scope = entry_.scopes[scope].parent) {
      for (const Scope::Registers& r : entry_.scopes[scope].registers) {
        if (r.count < 0 ? r.name == name
                        : digits < name.size() && name.compare(0, digits, r.name) == 0 &&
                              std::atoi(name.c_str() + digits) < r.count) {
          return &r;
        }
      }
    }
    return nullptr;
  }

  const Place& place(const std::string& name) {
    int scope = 0;
    const Scope::Registers* registers = declared(name, scope);
    if (!registers) fail("unknown register " + name);
    auto [found, is_new] = places_.try_emplace({scope, name});
    if (is_new) found->second = new_place(registers->type);
    return found->second;
  }

  Place new_place(const std::string& type) {
    Program& p = *program_;
    const Place place{type, p.register_bytes, p.registers++};
    p.register_bytes += static_cast<uint32_t>(type == "pred"        ? 64
                                              : bits_of(type) == 64 ? 2 * kRegisterBytes
                                                                    : kRegisterBytes);
    return place;
  }

  static bool is_special(const std::string& name, uint32_t& number) {
    const auto found = std::find(std::begin(kSpecialNames), std::end(kSpecialNames), name);
    number = static_cast<uint32_t>(found - std::begin(kSpecialNames));
    return number < kSpecials;
  }

  // All names but those that are only ever packed into wider registers.
  void find_names() {
    const auto add = [&](const Text& t, const auto& self) -> void {
      names_.insert(t.name);
      for (const Text& part : t.parts) self(part, self);
    };
    for (const Statement& s : entry_.statements) {
      for (size_t i = 0; i < s.operands.size(); ++i) {
        const bool packed = i == 1 && s.operands[i].kind == Text::kVector && s.opcode.starts_with("mov");
        if (!packed) add(s.operands[i], add);
      }
    }
  }

  bool has_value(const Text& t) const {
    uint32_t number = 0;
    return t.kind != Text::kName || names_.count(t.name) || addresses_.count(t.name) ||
           is_special(t.name, number);
  }

  // A value of `bits` bits that an instruction reads. A register may be wider, but not kept differently.
  Operand source(const Text& t, int bits) {
    if (bits == 1) return predicate(t);
    if (t.kind == Text::kInteger) return constant(t.bits, bits);
    if (t.kind == Text::kFloat) {
      if (t.wide != (bits == 64)) fail("a constant of the wrong width");
      return constant(t.bits, bits);
    }
    if (t.kind != Text::kName) fail("expected a register or a constant");
    uint32_t number = 0;
    if (is_special(t.name, number)) {
      return {static_cast<uint32_t>(number * kRegisterBytes), 1 + number, 32, false, false};
    }
    const auto symbol = addresses_.find(t.name);
    if (symbol != addresses_.end()) return constant(symbol->second.value, bits);
    return checked(t, bits);
  }

  Operand destination(const Text& t, int bits) {
    if (bits == 1) return predicate(t);
    if (t.name == "_") return {0, 0, static_cast<uint8_t>(bits), false, false};
    return checked(t, bits);
  }

  Operand checked(const Text& t, int bits) {
    const Operand o = any_register(t);
    if ((o.bits == 64) != (bits == 64))
      fail(t.name + " has " + std::to_string(o.bits) + " bits, not " + std::to_string(bits));
    return o;
  }

  // A register of whatever width: loads, stores and addresses look at it themselves.
  Operand any_register(const Text& t) {
    if (t.name == "_") return {0, 0, 32, false, false};
    const Place& p = place(t.name);
    if (p.type == "pred") fail(t.name + " is a predicate");
    return {p.offset, p.number, static_cast<uint8_t>(bits_of(p.type)), false, false};
  }

  Operand predicate(const Text& t) {
    if (t.kind == Text::kInteger) return constant(t.bits ? kAllLanes : 0, 32);
    if (t.name == "_") return {0, 0, 1, false, false};
    const Place& p = place(t.name);
    if (p.type != "pred") fail(t.name + " is no predicate");
    return {p.offset, p.number, 1, false, t.negated};
  }

  Operand new_predicate() {
    const Place p = new_place("pred");
    return {p.offset, p.number, 1, false, false};
  }

  // The base of an address and, in `offset`, what is added.
  Operand address(const Text& t, int64_t& offset) {
    if (t.kind != Text::kAddress) fail("expected an address");
    offset = static_cast<int64_t>(t.bits);
    if (t.name.empty()) return constant(0, 64);
    const auto symbol = addresses_.find(t.name);
    if (symbol != addresses_.end()) return constant(symbol->second.value, 64);
    Text name;
    name.name = t.name;
    return any_register(name);
  }

  Instruction& emit(Handler handler, Class type, std::vector<Operand> operands) {
    if (!handler) fail("unknown instruction");
    Instruction i;
    i.run = handler;
    i.type = type;
    i.operands = keep(std::move(operands));
    i.statement = statement_;
    program_->code.push_back(i);
    return program_->code.back();
  }

  const Text& text(size_t index) const {
    if (index >= statement_->operands.size()) fail("too few operands");
    return statement_->operands[index];
  }

  const Entry& entry_;
  std::unique_ptr<Program> program_;
  const Statement* statement_ = nullptr;
  std::map<std::string, Symbol> addresses_;
  std::set<std::string> names_;
  std::map<std::pair<int, std::string>, Place> places_;
  std::map<std::pair<bool, uint64_t>, uint32_t> constants_;
};

}  // namespace ptx
