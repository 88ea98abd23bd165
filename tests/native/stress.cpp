// Every function of the C library again and again, for a build that looks at each access to memory:
//     stress MODEL ONNXRUNTIME ROUNDS
// Random frames, streams that come and go, damaged snapshots, wrong arguments, two threads. The model: 3 float32 in, 2 out.
#include <edgelstm.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace {

std::mt19937 random_numbers(1);
unsigned draw(unsigned below) { return unsigned(random_numbers() % below); }

void need(bool true_, const char *what) {
  if (true_) return;
  std::printf("stress: %s\n", what);
  std::exit(1);
}

edgelstm_program *open(const char *model, const char *runtime, unsigned streams) {
  edgelstm_options options = EDGELSTM_OPTIONS;
  options.streams = streams, options.threads = 1, options.onnxruntime = runtime;
  edgelstm_program *program = nullptr;
  edgelstm_error error;
  int code = edgelstm_open(model, &options, &program, &error);
  need(code == EDGELSTM_OK, code ? error.what : "");
  return program;
}

void streams_that_come_and_go(edgelstm_program *program, unsigned most, int rounds) {
  std::vector<edgelstm_stream *> all;
  std::vector<char> state(edgelstm_state_size(program));
  edgelstm_error error;
  for (int k = 0; k < rounds; k++) {
    if (all.size() < most && draw(3) == 0) {
      edgelstm_stream *made;
      need(edgelstm_stream_new(program, &made, &error) == EDGELSTM_OK, "stream_new");
      all.push_back(made);
    }
    if (all.empty()) continue;
    std::shuffle(all.begin(), all.end(), random_numbers);
    size_t count = 1 + draw(unsigned(all.size()));
    std::vector<float> x(3 * count, 0.1f * float(draw(20))), y(2 * count);
    std::vector<edgelstm_input> in;
    std::vector<edgelstm_output> out;
    for (size_t n = 0; n < count; n++) in.push_back({&x[3 * n], 12}), out.push_back({&y[2 * n], 8});
    need(edgelstm_step(all.data(), count, in.data(), out.data(), &error) == EDGELSTM_OK, "step");
    in[count - 1].size = 11;
    need(edgelstm_step(all.data(), count, in.data(), out.data(), &error) == EDGELSTM_INVALID, "a wrong size");
    need(edgelstm_state_save(all[0], state.data(), state.size(), &error) == EDGELSTM_OK, "state_save");
    std::vector<char> damaged = state;
    for (unsigned n = 0; n < draw(4); n++) damaged[draw(unsigned(damaged.size()))] = char(draw(256));
    damaged.resize(damaged.size() - (draw(2) ? draw(unsigned(damaged.size())) : 0));
    std::vector<char> exact(damaged.begin(), damaged.end());  // nothing behind its end
    edgelstm_state_load(all[0], exact.data(), exact.size(), draw(2) ? &error : nullptr);
    need(edgelstm_state_load(all[0], state.data(), state.size(), &error) == EDGELSTM_OK, "state_load");
    if (draw(5) == 0) need(edgelstm_reset(all[0], nullptr) == EDGELSTM_OK, "reset");
    if (draw(6) == 0) edgelstm_stream_free(all[0]), all.erase(all.begin());
  }
}

void two_threads(edgelstm_program *program, int rounds) {
  edgelstm_stream *shared;
  need(edgelstm_stream_new(program, &shared, nullptr) == EDGELSTM_OK, "stream_new");
  auto work = [&] {
    edgelstm_error error;
    std::vector<char> state(edgelstm_state_size(program));
    for (int k = 0; k < rounds; k++) {
      edgelstm_stream *own;
      need(edgelstm_stream_new(program, &own, &error) == EDGELSTM_OK, "stream_new");
      float x[3] = {1, 2, 3}, y[2];
      edgelstm_input in = {x, sizeof x};
      edgelstm_output out = {y, sizeof y};
      need(edgelstm_step(&own, 1, &in, &out, &error) == EDGELSTM_OK, "step");
      for (int code : {edgelstm_step(&shared, 1, &in, &out, &error), edgelstm_state_save(shared, state.data(), state.size(), &error)})
        need(code == EDGELSTM_OK || code == EDGELSTM_BUSY, "a shared stream");
      edgelstm_stream_free(own);
    }
  };
  std::thread other(work);
  work();
  other.join();
}

// A thread steps and resets a stream that another frees: who has its place then has a state of its own.
void freed_amid_a_call(edgelstm_program *program, int rounds) {
  std::vector<char> first(edgelstm_state_size(program)), found(first.size());
  edgelstm_stream *stream;
  edgelstm_error error;
  need(edgelstm_stream_new(program, &stream, nullptr) == EDGELSTM_OK, "stream_new");
  need(edgelstm_state_save(stream, first.data(), first.size(), nullptr) == EDGELSTM_OK, "state_save");
  std::atomic<edgelstm_stream *> used{stream};
  std::atomic<bool> done{false};
  std::thread other([&] {
    float x[3] = {1, 2, 3}, y[2];
    edgelstm_input in = {x, sizeof x};
    edgelstm_output out = {y, sizeof y};
    while (!done) {
      edgelstm_stream *one = used;
      edgelstm_error why;
      for (int code : {edgelstm_step(&one, 1, &in, &out, &why), edgelstm_reset(one, &why)})
        need(code == EDGELSTM_OK || code == EDGELSTM_BUSY || code == EDGELSTM_INVALID, "a stream that was freed");
    }
  });
  for (int k = 0; k < rounds; k++) {
    edgelstm_stream_free(stream);
    need(edgelstm_stream_new(program, &stream, &error) == EDGELSTM_OK, "a place that is free again");
    need(edgelstm_state_save(stream, found.data(), found.size(), &error) == EDGELSTM_OK && found == first, "a state of its own");
    used = stream;
    std::this_thread::sleep_for(std::chrono::microseconds(draw(60)));
  }
  done = true;
  other.join();
}

}  // namespace

int main(int, char **arguments) {
  const char *model = arguments[1], *runtime = arguments[2];
  int rounds = std::atoi(arguments[3]);
  edgelstm_program *none = nullptr;
  edgelstm_error error;
  need(edgelstm_open("/nowhere", nullptr, &none, &error) == EDGELSTM_MODEL, "no model");
  need(edgelstm_open(nullptr, nullptr, &none, nullptr) == EDGELSTM_INVALID, "NULL");
  edgelstm_close(nullptr);
  edgelstm_stream_free(nullptr);
  for (unsigned streams : {1u, 2u, 7u}) {
    edgelstm_program *program = open(model, runtime, streams);
    streams_that_come_and_go(program, streams, rounds);
    edgelstm_close(program);  // and what streams are left
  }
  edgelstm_program *program = open(model, runtime, 3);
  two_threads(program, rounds);
  edgelstm_close(program);
  program = open(model, runtime, 1);
  freed_amid_a_call(program, rounds < 900 ? rounds : 900);  // 1024 that were freed are remembered
  edgelstm_close(program);
  std::printf("good\n");
}
