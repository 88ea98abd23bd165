// What is thrown inside; at the edge it becomes a code and an edgelstm_error.
#pragma once

#include <stdexcept>
#include <string>

#include "edgelstm.h"

namespace edgelstm {

struct Error : std::runtime_error {
  int code;
  std::string hint;
  Error(int code, const std::string& what, std::string hint = "")
      : std::runtime_error(what), code(code), hint(std::move(hint)) {}
};

inline std::string quoted(const std::string& text) { return "'" + text + "'"; }

}  // namespace edgelstm
