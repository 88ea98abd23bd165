// What a step graph takes and gives: the reader of edgelstm/graph/signature.py's JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace edgelstm {

struct Type {
  const char* name;   // as in the Signature
  int element;        // ONNXTensorElementDataType
  size_t size;        // bytes
  const char* descr;  // how NumPy stores it
};
const Type& type_of(const std::string& name);  // std::invalid_argument

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
