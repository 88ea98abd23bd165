// Weights in the order in which the kernels read them, made once and shared: an unrolled window has one cell many times over.
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"

namespace edgelstm {

// Floats on a boundary of 64 bytes.
class Floats {
 public:
  explicit Floats(size_t count);
  ~Floats();
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
};
using Shared = std::shared_ptr<const Floats>;

// Columns [column, column + inputs) of a matrix [rows, columns] (transposed: [columns, rows]) whose rows are gate by gate.
struct Slice {
  const void* data;
  int64_t rows, columns, column, inputs;
  bool transposed;
  std::vector<int64_t> gates;  // the first row of each gate
  Weights weights = Weights::kFloat;  // what its elements are
};

// [panel][inputs][gates][lanes], elements as they are.
Shared pack(const Slice& slice, int64_t units, int lanes);

// [panel][gates][lanes]; a gate that is null is zeros.
Shared pack_bias(const std::vector<const float*>& gates, int64_t units, int lanes);

}  // namespace edgelstm
