// The file in which a state is kept from one run to the next.
#pragma once

#include <string>

namespace edgelstm_gst {

// False where there is no such file. Throws Fault for one that can't be read, or is larger than `most`.
bool read_state(const std::string& path, size_t most, std::string* bytes);

// Seconds since the file was written, by its time; below 0 where that lies ahead, NaN without a file.
double state_age(const std::string& path);

// Whole or not at all: a file beside it, which then takes its name. Throws Fault.
void write_state(const std::string& path, const std::string& bytes);

}  // namespace edgelstm_gst
