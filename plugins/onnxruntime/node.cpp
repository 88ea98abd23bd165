// ONNX Runtime's calls as node.h has them, and matrices that are lent while a session is opened.
#include "node.h"

#include <map>
#include <mutex>

namespace edgelstm {

std::string text(const Shape& shape) {
  std::string out = "[";
  for (size_t k = 0; k < shape.size(); k++) out += (k ? ", " : "") + std::to_string(shape[k]);
  return out + "]";
}

int64_t Info::integer(const char* name, int64_t otherwise) const {
  int64_t value = otherwise;
  ort::Status* status = api().KernelInfoGetAttribute_int64(info, name, &value);
  if (status == nullptr) return value;
  api().ReleaseStatus(status);
  return otherwise;
}

float Info::real(const char* name, float otherwise) const {
  float value = otherwise;
  ort::Status* status = api().KernelInfoGetAttribute_float(info, name, &value);
  if (status == nullptr) return value;
  api().ReleaseStatus(status);
  return otherwise;
}

Tensor Info::constant(size_t input) const {
  int is_constant = 0;
  const ort::Value* value = nullptr;
  Tensor found;
  check(api().KernelInfoGetConstantInput_tensor(info, input, &is_constant, &value));
  if (!is_constant || value == nullptr) return found;
  void* data = nullptr;
  check(api().GetTensorMutableData(const_cast<ort::Value*>(value), &data));
  found.data = static_cast<const float*>(data);
  ort::TensorInfo* type = nullptr;
  check(api().GetTensorTypeAndShape(value, &type));
  size_t rank = 0;
  ort::Status* status = api().GetDimensionsCount(type, &rank);
  found.shape.resize(rank);
  if (status == nullptr) status = api().GetDimensions(type, found.shape.data(), rank);
  api().ReleaseTensorTypeAndShapeInfo(type);
  check(status);
  return found;
}

namespace {
struct Lent {
  std::mutex lock;
  std::map<int64_t, Tensor> matrices;
};
Lent& lent() {
  static Lent all;
  return all;
}
}  // namespace

Tensor Info::matrix(size_t input, const char* attribute, int type) const {
  int64_t number = integer(attribute, 0);
  if (number == 0) {
    Tensor found = constant(input);
    found.type = type;  // ONNX Runtime has looked
    return found;
  }
  std::lock_guard<std::mutex> guard(lent().lock);
  auto found = lent().matrices.find(number);
  if (found == lent().matrices.end()) refuse(op, "weights " + std::to_string(number) + " were not lent");
  if (found->second.type != type) refuse(op, "weights " + std::to_string(number) + " were lent in another type");
  return found->second;
}

Variant Info::variant() const {
  Variant v;
  v.hard_sigmoid = integer("hard_sigmoid", 0) != 0;
  v.alpha = real("alpha", 0.2f), v.beta = real("beta", 0.5f);
  v.candidate_relu = integer("candidate_relu", 0) != 0;
  v.output_relu = integer("output_relu", 0) != 0;
  v.cell_clip = real("cell_clip", 0);
  v.coupled = integer("coupled", 0) != 0;
  return v;
}

size_t Context::shape(size_t input, int64_t* dims, size_t most) const {
  ort::TensorInfo* type = nullptr;
  check(api().GetTensorTypeAndShape(value(input), &type));
  size_t rank = 0;
  ort::Status* status = api().GetDimensionsCount(type, &rank);
  if (status == nullptr && rank <= most) status = api().GetDimensions(type, dims, rank);
  api().ReleaseTensorTypeAndShapeInfo(type);
  check(status);
  return rank;
}

const float* Context::matrix(size_t input, int64_t rows, int64_t columns, const char* what) const {
  int64_t dims[8];
  size_t rank = shape(input, dims, 8);
  if (rank == 2 && dims[0] == rows && dims[1] == columns) return data(value(input));
  refuse(op, std::string(what) + " is " + text(Shape(dims, dims + (rank <= 8 ? rank : 0))) + ", expected " + text({rows, columns}));
}

}  // namespace edgelstm

// A matrix that kernels find under a number while a session is opened; data null: no longer. type: ONNX's number of its elements.
extern "C" __attribute__((visibility("default"))) void edgelstm_lend(int64_t number, const void* data, int type, int64_t rows,
                                                                     int64_t columns) {
  using namespace edgelstm;
  std::lock_guard<std::mutex> guard(lent().lock);
  if (data == nullptr) {
    lent().matrices.erase(number);
  } else {
    lent().matrices[number] = Tensor{static_cast<const float*>(data), {rows, columns}, type};
  }
}
