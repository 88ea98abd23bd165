// ONNX Runtime's calls as the operators want them: errors are exceptions inside, one message outside.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "ort_abi.h"

namespace edgelstm {

const ort::Api& api();          // set when the library is registered
bool registered();
ort::Status* add_operators(ort::SessionOptions* options);
const Kernels& kernels();       // the best this processor has, or the one that EDGELSTM_NATIVE_ISA names

inline void check(ort::Status* status) {
  if (status == nullptr) return;
  std::string text = api().GetErrorMessage(status);
  api().ReleaseStatus(status);
  throw std::runtime_error(text);
}

[[noreturn]] inline void refuse(const char* op, const std::string& what) { throw std::invalid_argument(std::string(op) + ": " + what); }

using Shape = std::vector<int64_t>;
std::string text(const Shape& shape);

// A tensor: of floats, unless it is codes or bfloat16 that somebody asked for.
struct Tensor {
  const float* data = nullptr;
  Shape shape;
  int type = ort::kFloat;
  int64_t count() const {
    int64_t total = 1;
    for (int64_t d : shape) total *= d;
    return total;
  }
};

// What a kernel's constructor reads.
struct Info {
  const ort::KernelInfo* info;
  const char* op;
  int64_t integer(const char* name, int64_t otherwise) const;
  float real(const char* name, float otherwise) const;
  Tensor constant(size_t input) const;  // data null where there is none
  // The constant input, else the matrix that was lent under the number in that attribute: a session keeps its constants beside
  // what is packed of them, which a device with large cells has no memory for.
  Tensor matrix(size_t input, const char* attribute, int type) const;
  Variant variant() const;
};

// What a step reads and writes.
struct Context {
  ort::KernelContext* context;
  const char* op;

  const ort::Value* value(size_t input) const {
    const ort::Value* found = nullptr;
    check(api().KernelContext_GetInput(context, input, &found));
    return found;
  }
  const float* data(const ort::Value* value) const {
    void* found = nullptr;
    check(api().GetTensorMutableData(const_cast<ort::Value*>(value), &found));
    return static_cast<const float*>(found);
  }
  size_t shape(size_t input, int64_t* dims, size_t most) const;
  // A matrix that has to have that size. `what` names it in the message.
  const float* matrix(size_t input, int64_t rows, int64_t columns, const char* what) const;
  // Null for one that the node does not have.
  float* output(size_t index, const int64_t* dims, size_t rank) const {
    ort::Value* found = nullptr;
    check(api().KernelContext_GetOutput(context, index, dims, rank, &found));
    return found == nullptr ? nullptr : const_cast<float*>(data(found));
  }
  // Calls work(part) for each of `parts`, on ONNX Runtime's own threads.
  template <class Work>
  void each(int64_t parts, const Work& work) const {
    auto run = [](void* data, size_t part) { (*static_cast<const Work*>(data))(static_cast<int64_t>(part)); };
    check(api().KernelContext_ParallelFor(context, run, parts, parts, const_cast<Work*>(&work)));
  }
  // Calls work(first, last) over [0, count), in `parts` on ONNX Runtime's own threads.
  template <class Work>
  void share(int64_t count, int64_t parts, const Work& work) const {
    if (parts > count) parts = count;
    if (parts < 2) return work(0, count);
    each(parts, [&](int64_t part) { work(count * part / parts, count * (part + 1) / parts); });
  }
};

}  // namespace edgelstm
