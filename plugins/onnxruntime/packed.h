// Weights in the order in which the kernels read them, made once and shared: an unrolled window has one cell many times over.
#pragma once

#include <memory>
#include <vector>

#include "dot.h"
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
  const Dot* dot = nullptr;           // of int8: who multiplies them, else the kernels do
};

// [panel][inputs][gates][lanes], elements as they are; with `dot` as it wants them.
Shared pack(const Slice& slice, int64_t units, int lanes);

// [panel][gates][lanes]; a gate that is null is zeros.
Shared pack_bias(const std::vector<const float*>& gates, int64_t units, int lanes);

// Rows of numbers, encoded for one step.
class DotRows {
 public:
  void encode(const Dot& dot, const float* values, int64_t rows, int64_t count, int64_t lead) {
    int64_t size = (12 * Dot::groups(lead + count) + 63) / 64 * 64;
    int8_t* bytes = few_bytes_;
    rows_ = few_;
    if (rows > kFew || rows * size > kFewBytes) {
      many_.reset(new DotRow[rows]), many_bytes_.reset(new int8_t[rows * size]);
      rows_ = many_.get(), bytes = many_bytes_.get();
    }
    for (int64_t k = 0; k < rows; k++) {
      rows_[k] = {values + k * count, count, lead, nullptr, {0, 0, 0}, 0};
      dot.encode(&rows_[k], bytes + k * size);
    }
  }
  const DotRow* get() const { return rows_; }

 private:
  static constexpr int64_t kFew = 4, kFewBytes = 16384;
  alignas(64) int8_t few_bytes_[kFewBytes];  // allocating takes as long as a small cell's product
  DotRow few_[kFew];
  DotRow* rows_ = nullptr;
  std::unique_ptr<DotRow[]> many_;
  std::unique_ptr<int8_t[]> many_bytes_;
};

}  // namespace edgelstm
