// An opened model, the memory of its streams, and its steps: as edgelstm/runtime/rows.py and gpu.py, which say why it is done this way.
//
// Every state has two buffers of a row for each stream, and every row a side on which its current value lies. A call takes a run of
// rows: the engine reads them on one side and writes the other, and only the rows that took part change sides. So idle rows
// keep their bits, and nothing is copied. Calls are made as the Python Runner makes them, so the numbers have the same bits.
//
// On a GPU states stay there; frames and outputs go by locked memory of the host, in the order of one stream, and from the second time
// on a call is a CUDA graph, where the engine can be captured.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "engine.h"

namespace edgelstm {

struct Frames {  // of one stream
  const edgelstm_input* inputs;
  const edgelstm_output* outputs;
  int row;
};

// Rows of a tensor: where the engine has them, and where the host has them. On the processor both are one; states on a GPU have no
// place on the host.
class Buffer {
 public:
  enum class Host { kNone, kToo, kOnly };
  Buffer(const Spec& spec, size_t rows, size_t stride, Cuda* cuda, Host host);
  char* row(size_t k) const { return device_ + k * stride_; }
  char* host(size_t k) const { return host_ + k * stride_; }
  size_t bytes() const { return bytes_; }  // of a row
  size_t stride() const { return stride_; }

 private:
  size_t bytes_, stride_;
  std::unique_ptr<char, void (*)(void*)> own_;  // on the processor; on a GPU Cuda owns it
  char* device_ = nullptr;
  char* host_ = nullptr;
};
using Buffers = std::vector<Buffer>;

class Program {
 public:
  Program(const char* model, const edgelstm_options& options);
  Program(const Program&) = delete;

 private:
  std::unique_ptr<Cuda> cuda_;  // null on the processor; the first to come and the last to go
  std::unique_ptr<Engine> engine_;

 public:
  const Signature& signature;
  const std::string& json;
  size_t state_size = 0;

  // Each takes the lock. Rows are those of take_row(); a row is used by one thread at a time.
  int take_row();  // Error with EDGELSTM_FULL
  void give_row(int row);
  void reset(int row);
  std::string save(int row);
  void load(int row, const void* data, size_t size);

  // The lock is the caller's: turn().
  std::unique_lock<std::mutex> turn() { return std::unique_lock<std::mutex>(mutex_); }
  std::vector<Frames>& order() { return order_; }  // room for all streams; to be filled, and sorted by row
  void step();

 private:
  using Key = std::tuple<int, int, int>;  // first row (-1: scratch), rows, side
  struct Copy {
    char* to;
    const char* from;
    size_t size;
  };
  struct Call {
    const Cuda* cuda;
    std::unique_ptr<Step> step;
    std::vector<Copy> load, store;  // to the GPU before it, and to the host after it
    int runs = 0;
    CudaGraph graph = nullptr;
    void put(CudaStream on) const;
    ~Call();
  };

  CallSize size_;
  int granule_ = 1;  // a call begins at a multiple of so many rows, where its addresses are on a boundary
  std::mutex mutex_;
  size_t streams_, capacity_;
  std::vector<int> free_;
  std::vector<Frames> order_;
  std::vector<char> side_;
  Buffers inputs_, outputs_;  // on the processor, outputs that are a state's output lie with the states
  Buffers states_[2];
  Buffers scratch_[2];
  std::vector<int> shared_;  // of each output: the state whose output it is, else -1
  std::vector<int> place_;   // of each output: where in outputs_
  std::map<Key, std::unique_ptr<Call>> calls_;
  std::deque<Key> oldest_;

  size_t stride(const Spec& spec) const;
  void allocate();
  Buffers state_buffers();
  void copy(void* to, const void* from, size_t size) const;
  void wait() const;
  void begin_anew(const Buffers& states, int row);
  void run(const Key& key, int first, int count, const Buffers& before, const Buffers& after);
  std::unique_ptr<Call> bind(int first, int count, const Buffers& before, const Buffers& after);
  void put(const Frames& frames, int slot);
  void take(const Frames& frames, int slot, const Buffers& after) const;
};

}  // namespace edgelstm
