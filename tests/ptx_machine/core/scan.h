// The characters and words of PTX text.
#pragma once

#include <cctype>
#include <cstdlib>
#include <string>

#include "ptx.h"

namespace ptx {

inline bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%';
}

class Scanner {
 protected:
  Scanner(const std::string& text, const std::string& name) : text_(text), name_(name) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw Fault(name_ + ", line " + std::to_string(line_) + ": " + what);
  }

  char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }

  void step() {
    if (text_[at_++] == '\n') ++line_;
  }

  // Past white space and comments.
  void skip() {
    for (;;) {
      if (std::isspace(static_cast<unsigned char>(peek())) && at_ < text_.size()) {
        step();
      } else if (peek() == '/' && peek(1) == '/') {
        skip_line();
      } else if (peek() == '/' && peek(1) == '*') {
        while (at_ < text_.size() && !(peek() == '*' && peek(1) == '/')) step();
        at_ += 2;
      } else {
        return;
      }
    }
  }

  void skip_line() {
    while (at_ < text_.size() && peek() != '\n') ++at_;
  }

  void skip_braces() {
    expect('{');
    for (int depth = 1; depth > 0; step()) {
      if (at_ >= text_.size()) fail("a brace is never closed");
      depth += (peek() == '{') - (peek() == '}');
    }
  }

  bool take(char c) {
    skip();
    if (peek() != c) return false;
    step();
    return true;
  }

  void expect(char c) {
    if (!take(c)) fail(std::string("expected '") + c + "', found '" + std::string(1, peek()) + "'");
  }

  // Letters, digits, _ $ % and, where asked for, dots.
  std::string word(bool dots) {
    skip();
    const size_t first = at_;
    while (is_word(peek()) || (dots && (peek() == '.' || (peek() == ':' && peek(1) == ':')))) {
      at_ += peek() == ':' ? 2 : 1;
    }
    if (first == at_) fail(std::string("expected a word, found '") + std::string(1, peek()) + "'");
    return text_.substr(first, at_ - first);
  }

  uint64_t integer() {
    const Text value = number();
    if (value.kind != Text::kInteger) fail("expected an integer");
    return value.bits;
  }

  Text number() {
    skip();
    Text value;
    const bool negative = take('-');
    const std::string digits = word(false);
    if (digits.size() == 10 && digits[0] == '0' && (digits[1] == 'f' || digits[1] == 'F')) {
      value.kind = Text::kFloat;
      value.bits = std::strtoull(digits.c_str() + 2, nullptr, 16);
      if (negative) value.bits ^= 0x80000000u;
      return value;
    }
    if (digits.size() == 18 && digits[0] == '0' && (digits[1] == 'd' || digits[1] == 'D')) {
      value.kind = Text::kFloat;
      value.wide = true;
      value.bits = std::strtoull(digits.c_str() + 2, nullptr, 16);
      if (negative) value.bits ^= uint64_t{1} << 63;
      return value;
    }
    char* end = nullptr;
    value.kind = Text::kInteger;
    if (digits.size() > 2 && digits[0] == '0' && (digits[1] == 'b' || digits[1] == 'B')) {
      value.bits = std::strtoull(digits.c_str() + 2, &end, 2);
    } else {
      value.bits = std::strtoull(digits.c_str(), &end, 0);
    }
    if (*end == 'U') ++end;
    if (*end != '\0') fail("no number: " + digits);
    if (negative) value.bits = -value.bits;
    return value;
  }

  const std::string& text_;
  std::string name_;
  size_t at_ = 0;
  int line_ = 1;
};

}  // namespace ptx
