// The file beside a TensorRT plan, which tells what it was made from and for: the reader of edgelstm/runtime/sidecar.py's JSON.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "json.h"

namespace edgelstm {

struct Sidecar {
  std::string signature;    // JSON
  std::string runtime, version, gpu, gates;
  std::string engine_name;  // what the plan's engine has to be called
  std::vector<std::string> targets, precision;
  std::array<int, 3> streams{};                // fewest, usual, most
  std::vector<std::array<int, 3>> profiles;    // likewise, of each
  bool version_compatible = false, hardware_compatible = false, in_place = true;
  int64_t plan_bytes = 0;
};

// Throws Error, which names `where`, for what is no sidecar.
Sidecar parse_sidecar(const std::string& text, const std::string& where);

// That of a plan. Throws Error.
Sidecar load_sidecar(const std::string& plan);

}  // namespace edgelstm
