// One GPU through the CUDA driver, loaded when it is needed: its memory, a stream, graphs. As edgelstm/runtime/cuda.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

struct CUstream_st;
struct CUgraphExec_st;

namespace edgelstm {

using CudaStream = ::CUstream_st*;
using CudaGraph = ::CUgraphExec_st*;

// Calls go between the two ends of a Current; all but the constructor's and the destructor's.
class Cuda {
 public:
  explicit Cuda(int index);  // Error with EDGELSTM_LIBRARY (no driver) or EDGELSTM_DEVICE
  ~Cuda();                   // frees all memory, too
  Cuda(const Cuda&) = delete;

  int index, major = 0, minor = 0;
  std::string name;
  CudaStream stream = nullptr;

  // Makes its context that of the thread. Of null it does nothing.
  class Current {
   public:
    explicit Current(const Cuda* cuda);
    ~Current();
    Current(const Current&) = delete;

   private:
    const Cuda* cuda_;
  };

  size_t free_memory() const;
  char* allocate(size_t size);       // on a boundary of 256 bytes; what it holds has no meaning
  char* allocate_host(size_t size);  // locked, zeros
  void copy(void* to, const void* from, size_t size, CudaStream on = nullptr) const;  // begins to; null: `stream`
  void wait() const;
  CudaGraph capture(const std::function<void(CudaStream)>& work) const;
  void launch(CudaGraph graph) const;
  void destroy(CudaGraph graph) const;

 private:
  struct Driver;
  static const Driver& driver();
  static void check(int result, const char* what);
  const Driver& d_;
  int device_ = 0;
  void* context_ = nullptr;
  CudaStream capturing_ = nullptr;
  std::vector<uint64_t> allocated_;
  std::vector<std::unique_ptr<char, void (*)(void*)>> locked_;
};

}  // namespace edgelstm
