// An opened model, the memory of its streams, and its steps: as edgelstm/runtime/rows.py, which says why it is done this way.
//
// Every state has two buffers of a row for each stream, and every row a side on which its current value lies. A call takes a run of
// rows: ONNX Runtime reads them on one side and writes the other, and only the rows that took part change sides. So idle rows
// keep their bits, and nothing is copied. Calls are made as the Python Runner makes them, so the numbers have the same bits.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "ort.h"
#include "signature.h"

namespace edgelstm {

struct Frames {  // of one stream
  const edgelstm_input* inputs;
  const edgelstm_output* outputs;
  int row;
};

// Memory for `rows` rows of a tensor, aligned to a cache line.
class Buffer {
 public:
  Buffer(const Spec& spec, size_t rows);
  char* row(size_t k) const { return data_.get() + k * bytes_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  std::unique_ptr<char, void (*)(void*)> data_;
};
using Buffers = std::vector<Buffer>;

class Program {
 public:
  Program(const char* model, const edgelstm_options& options);
  ~Program();
  Program(const Program&) = delete;

  Signature signature;
  std::string json;
  std::string model;  // which one: the hash of its file
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
  using Session = Owned<ort::Session>;
  using Binding = Owned<ort::Binding>;

  const Runtime& runtime_;
  std::string where_;
  Session session_;
  Owned<ort::RunOptions> run_options_;
  Owned<ort::MemoryInfo> memory_;
  std::mutex mutex_;
  size_t streams_, capacity_;
  std::vector<int> free_;
  std::vector<Frames> order_;
  std::vector<char> side_;
  Buffers inputs_, outputs_;  // outputs that are a state's output lie with the states
  Buffers states_[2];
  Buffers scratch_[2];
  std::vector<int> shared_;  // of each output: the state whose output it is, else -1
  std::vector<int> place_;   // of each output: where in outputs_
  std::map<Key, Binding> calls_;
  std::deque<Key> oldest_;

  void open(const edgelstm_options& options);
  void compare_with_graph();
  Buffers state_buffers() const;
  void run(const Key& key, int first, int count, const Buffers& before, const Buffers& after);
  Binding bind(int first, int count, const Buffers& before, const Buffers& after) const;
  void put(const Frames& frames, int slot);
  void take(const Frames& frames, int slot, const Buffers& after);
};

}  // namespace edgelstm
