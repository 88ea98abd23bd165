// What is thrown inside the element; at its edge it becomes one GST_ELEMENT_ERROR.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace edgelstm_gst {

enum class Kind { kSettings, kLibrary, kModel, kFrames, kRun, kRead, kWrite };

struct Fault : std::runtime_error {
  Kind kind;
  Fault(Kind kind, const std::string& what, const std::string& found = "", const std::string& expected = "", const std::string& hint = "")
      : std::runtime_error(text(what, found, expected, hint)), kind(kind) {}

 private:
  static std::string text(const std::string& what, const std::string& found, const std::string& expected, const std::string& hint) {
    std::string all = what;
    if (!found.empty()) all += ": found " + found;
    if (!expected.empty()) all += (found.empty() ? ": expected " : "; expected ") + expected;
    return hint.empty() ? all : all + ". " + hint;
  }
};

using Shape = std::vector<int64_t>;

inline std::string text_of(const Shape& shape) {
  std::string text = "[";
  for (size_t k = 0; k < shape.size(); k++) text += (k ? ", " : "") + std::to_string(shape[k]);
  return text + "]";
}

inline int64_t elements(const Shape& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

}  // namespace edgelstm_gst
