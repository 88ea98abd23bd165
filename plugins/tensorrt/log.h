// Messages of the plugin: to TensorRT's logger where the library was given one, else to standard error.

#pragma once

#include <string>

namespace edgelstm::trt {

// Logs `error`, if there is one. Returns whether there was none.
bool report(std::string const& error) noexcept;

}  // namespace edgelstm::trt
