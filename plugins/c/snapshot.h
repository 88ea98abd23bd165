// A stream's state as an .npz file, as edgelstm/runtime/snapshot.py and numpy.savez write it: a zip file without compression, an
// .npy file for each state, and JSON that says which model it is of.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "signature.h"

namespace edgelstm {

// `values`: where each state's bytes lie, in the order of `states`.
std::string write_snapshot(const std::vector<State>& states, const std::vector<const void*>& values, const std::string& model);

// Where each state's bytes lie in `data`, in the order of `states`. Throws Error: for bytes that are no snapshot, for another
// model's, for other states.
std::vector<const void*> read_snapshot(const std::vector<State>& states, const std::string& model, const void* data, size_t size);

}  // namespace edgelstm
