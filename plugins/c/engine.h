// What computes a step: ONNX Runtime on the processor or on a GPU, or TensorRT where the library was built with its headers.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cuda.h"
#include "edgelstm.h"
#include "signature.h"

namespace edgelstm {

// Rows of a call. most 0: any number. overwrites: states it reads may be written over, so no idle row may lie in a call.
struct CallSize {
  int least = 1, most = 0;
  bool overwrites = false;
};

// A tensor of a call by its name in the graph; its rows lie side by side.
struct Bound {
  const std::string* name;
  const Spec* spec;
  char* data;
  bool in;
};

class Step {
 public:
  virtual ~Step() = default;
  virtual void run(CudaStream stream) = 0;  // null on the processor: done when it is back. Error with EDGELSTM_RUN
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::unique_ptr<Step> bind(int rows, const std::vector<Bound>& tensors) = 0;

  Signature signature;
  std::string json;
  std::string model;  // which one: the hash of its file
  CallSize size;
  bool captures = false;  // whether its work can be captured in a CUDA graph
};

// cuda: null for the processor. Throw Error.
std::unique_ptr<Engine> open_onnx(const std::string& path, const edgelstm_options& options, const Cuda* cuda);
std::unique_ptr<Engine> open_tensorrt(const std::string& path, const edgelstm_options& options, Cuda* cuda);

}  // namespace edgelstm
