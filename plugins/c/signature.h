// What a step graph takes and gives: the reader of edgelstm/graph/signature.py's JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace edgelstm {

// ONNXTensorElementDataType, of the types that a Signature knows.
enum ElementType : int {
  kFloat32 = 1, kUint8 = 2, kInt8 = 3, kInt16 = 5, kInt32 = 6, kInt64 = 7, kBool = 9, kFloat16 = 10, kFloat64 = 11, kBfloat16 = 16, kFloat8 = 17
};

struct Type {
  const char* name;   // as in the Signature
  ElementType element;
  size_t size;        // bytes
  const char* descr;  // how NumPy stores it
};
const Type& type_of(const std::string& name);  // std::invalid_argument
const char* name_of(int element);              // null for one that a Signature does not know

struct Spec {
  std::string name;
  const Type* type = nullptr;
  std::vector<int64_t> shape;  // without the stream axis
  int64_t count = 1;           // elements of one stream
  size_t bytes() const { return size_t(count) * type->size; }
  std::string text() const;  // float32[3, 4]
};

struct State : Spec {
  std::string input, output;
  std::string initial;  // bytes of one stream's first value; empty: zeros
};

struct Signature {
  std::vector<Spec> inputs, outputs;
  std::vector<State> states;
  int64_t rows = 0;  // streams of every call; 0: any number
};

// `where` names the file in messages. Throws Error.
Signature parse_signature(const std::string& json, const std::string& where);

}  // namespace edgelstm
