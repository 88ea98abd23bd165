// The functions of edgelstm.h: arguments are looked at here, before anything moves.
#include "edgelstm.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <deque>
#include <new>
#include <set>
#include <thread>

#include "error.h"
#include "program.h"

using edgelstm::Error;
using edgelstm::Frames;
using edgelstm::Program;

struct edgelstm_stream {
  edgelstm_program* program;
  int row = -1;
  std::atomic<bool> freed{false};
  std::atomic_flag busy = ATOMIC_FLAG_INIT;
};

struct edgelstm_program : Program {
  using Program::Program;
  std::mutex members;  // of these two
  std::set<edgelstm_stream*> streams;
  std::deque<std::unique_ptr<edgelstm_stream>> freed;  // the last ones, so that one who goes on using them is told
  ~edgelstm_program() {
    for (edgelstm_stream* stream : streams) delete stream;
  }
};

namespace {

const char kBusy[] = "this stream is being used by another thread";
constexpr size_t kRemembered = 1024;
constexpr size_t kFirstOptions = offsetof(edgelstm_options, device);  // what programs of the first header have

// Bytes of the character that begins there; 0 where none of UTF-8 does, or one that moves a terminal's cursor.
size_t character(const unsigned char* text) {
  size_t more = *text < 0x80 ? 0 : *text >= 0xc2 && *text < 0xe0 ? 1 : *text >= 0xe0 && *text < 0xf0 ? 2 : *text >= 0xf0 && *text < 0xf5 ? 3 : 9;
  if (more == 9 || *text < 0x20 || *text == 0x7f) return 0;
  for (size_t k = 1; k <= more; k++)
    if ((text[k] & 0xc0) != 0x80) return 0;
  bool odd = (*text == 0xe0 && text[1] < 0xa0) || (*text == 0xed && text[1] > 0x9f) || (*text == 0xf0 && text[1] < 0x90) ||
             (*text == 0xf4 && text[1] > 0x8f) || (*text == 0xc2 && text[1] < 0xa0);
  return odd ? 0 : more + 1;
}

// Text that ends in time, between two characters; what is none becomes a question mark, since damaged files are quoted.
void copy(const char* text, char* to, size_t room) {
  auto from = reinterpret_cast<const unsigned char*>(text);
  char* end = to + room - 1;
  while (*from != '\0') {
    size_t size = character(from);
    if (size_t(end - to) < std::max<size_t>(size, 1)) break;
    if (size == 0) *to++ = '?', from++;
    else memcpy(to, from, size), to += size, from += size;
  }
  *to = '\0';
}

int fail(edgelstm_error* error, int code, const char* what, const char* hint = "") {
  if (error != nullptr) {
    error->code = code;
    copy(what, error->what, sizeof error->what);
    copy(hint, error->hint, sizeof error->hint);
  }
  return code;
}

// No exception leaves the library.
template <class Work>
int tried(edgelstm_error* error, const Work& work) {
  try {
    work();
    return EDGELSTM_OK;
  } catch (const Error& found) {
    return fail(error, found.code, found.what(), found.hint.c_str());
  } catch (const std::bad_alloc&) {
    return fail(error, EDGELSTM_MEMORY, "out of memory", "Open the program with fewer streams");
  } catch (const std::exception& found) {
    return fail(error, EDGELSTM_RUN, found.what());
  }
}

Error invalid(const std::string& what, const std::string& hint = "") { return Error(EDGELSTM_INVALID, what, hint); }

// Marks streams as being used, and unmarks them at the end.
class Use {
 public:
  Use(edgelstm_stream* const* streams, size_t count) : streams_(streams) {
    for (; taken_ < count; taken_++) {
      bool free = !streams[taken_]->busy.test_and_set(std::memory_order_acquire), gone = streams[taken_]->freed;
      if (free && !gone) continue;
      bool twice = std::find(streams, streams + taken_, streams[taken_]) != streams + taken_;
      if (free) taken_++;
      release();
      if (gone) throw invalid("a stream that was freed", "Free a stream when nothing uses it any more");
      throw twice ? invalid("step: the same stream twice") : Error(EDGELSTM_BUSY, kBusy, "Give each stream to one thread");
    }
  }
  ~Use() { release(); }
  Use(const Use&) = delete;

 private:
  edgelstm_stream* const* streams_;
  size_t taken_ = 0;
  void release() {
    while (taken_ != 0) streams_[--taken_]->busy.clear(std::memory_order_release);
  }
};

edgelstm_options read_options(const edgelstm_options* given) {
  edgelstm_options options = EDGELSTM_OPTIONS;
  if (given == nullptr) return options;
  if (given->size < kFirstOptions)
    throw Error(EDGELSTM_ABI, "options of " + std::to_string(given->size) + " bytes, expected " + std::to_string(sizeof options),
                "Begin with edgelstm_options options = EDGELSTM_OPTIONS, and compile with this library's edgelstm.h");
  if (given->abi != EDGELSTM_ABI_VERSION)
    throw Error(EDGELSTM_ABI, "a program for version " + std::to_string(given->abi) + " of the interface; this library is of version " +
                std::to_string(EDGELSTM_ABI_VERSION), "Compile it with this library's edgelstm.h");
  // What a newer header has more may be left at its default, and at nothing else.
  auto bytes = reinterpret_cast<const char*>(given);
  for (size_t k = sizeof options; k < given->size && k < 4096; k++)
    if (bytes[k] != 0) throw Error(EDGELSTM_ABI, "options that this library does not know", "It is older than the edgelstm.h: build it again");
  memcpy(&options, given, std::min(given->size, sizeof options));
  return options;
}

void check_sizes(const Program& program, size_t stream, const edgelstm_input* inputs, const edgelstm_output* outputs) {
  auto wrong = [&](const char* kind, const edgelstm::Spec& spec, const void* data, size_t size) {
    throw invalid(std::string("step: ") + kind + " " + edgelstm::quoted(spec.name) + " of stream " + std::to_string(stream) + ": found " +
                  (data == nullptr ? "NULL" : std::to_string(size) + " bytes") + "; expected " + std::to_string(spec.bytes()) + " bytes, " + spec.text());
  };
  for (const edgelstm::Spec& spec : program.signature.inputs) {
    if (inputs->data == nullptr || inputs->size != spec.bytes()) wrong("input", spec, inputs->data, inputs->size);
    inputs++;
  }
  for (const edgelstm::Spec& spec : program.signature.outputs) {
    bool unwanted = outputs->data == nullptr && outputs->size == 0;
    if (!unwanted && (outputs->data == nullptr || outputs->size != spec.bytes())) wrong("output", spec, outputs->data, outputs->size);
    outputs++;
  }
}

}  // namespace

extern "C" {

uint32_t edgelstm_abi_version(void) { return EDGELSTM_ABI_VERSION; }

int edgelstm_open(const char* model, const edgelstm_options* options, edgelstm_program** program, edgelstm_error* error) {
  return tried(error, [&] {
    if (model == nullptr || program == nullptr) throw invalid("open: NULL for the model or for where the program goes");
    *program = new edgelstm_program(model, read_options(options));
  });
}

void edgelstm_close(edgelstm_program* program) { delete program; }

const char* edgelstm_signature_json(const edgelstm_program* program) { return program == nullptr ? nullptr : program->json.c_str(); }

int edgelstm_stream_new(edgelstm_program* program, edgelstm_stream** stream, edgelstm_error* error) {
  return tried(error, [&] {
    if (program == nullptr || stream == nullptr) throw invalid("stream_new: NULL for the program or for where the stream goes");
    auto made = std::make_unique<edgelstm_stream>();
    made->program = program;
    std::lock_guard<std::mutex> turn(program->members);
    auto place = program->streams.insert(made.get()).first;
    try {
      made->row = program->take_row();
      program->reset(made->row);
    } catch (...) {
      if (made->row >= 0) program->give_row(made->row);
      program->streams.erase(place);
      throw;
    }
    *stream = made.release();
  });
}

void edgelstm_stream_free(edgelstm_stream* stream) {
  if (stream == nullptr) return;
  edgelstm_program& program = *stream->program;
  std::lock_guard<std::mutex> turn(program.members);
  if (program.streams.erase(stream) == 0) return;  // twice
  std::unique_ptr<edgelstm_stream> held(stream);
  // A call that another thread has on it goes to its end first: the row is the next stream's.
  stream->freed = true;
  while (stream->busy.test_and_set(std::memory_order_acquire)) std::this_thread::sleep_for(std::chrono::microseconds(20));
  stream->busy.clear(std::memory_order_release);
  program.give_row(stream->row);
  try {
    program.freed.push_back(std::move(held));
  } catch (const std::bad_alloc&) {
    return;  // not remembered, then
  }
  if (program.freed.size() > kRemembered) program.freed.pop_front();
}

int edgelstm_step(edgelstm_stream* const* streams, size_t count, const edgelstm_input* inputs, const edgelstm_output* outputs,
                  edgelstm_error* error) {
  if (count == 0) return EDGELSTM_OK;
  return tried(error, [&] {
    if (streams == nullptr || streams[0] == nullptr || inputs == nullptr) throw invalid("step: NULL for the streams or the inputs");
    edgelstm_program& program = *streams[0]->program;
    size_t takes = program.signature.inputs.size(), gives = program.signature.outputs.size();
    if (outputs == nullptr && gives != 0) throw invalid("step: NULL for the outputs", "An output that is not wanted is {NULL, 0}");
    for (size_t k = 0; k < count; k++) {
      if (streams[k] == nullptr) throw invalid("step: NULL for stream " + std::to_string(k));
      if (streams[k]->program != &program) throw invalid("step: streams of two programs", "Call it once for each program");
      check_sizes(program, k, inputs + k * takes, outputs + k * gives);
    }
    Use use(streams, count);  // so there are no more of them than places
    auto turn = program.turn();
    std::vector<Frames>& order = program.order();
    order.clear();
    for (size_t k = 0; k < count; k++) order.push_back({inputs + k * takes, outputs + k * gives, streams[k]->row});
    std::sort(order.begin(), order.end(), [](const Frames& a, const Frames& b) { return a.row < b.row; });
    program.step();
  });
}

int edgelstm_reset(edgelstm_stream* stream, edgelstm_error* error) {
  return tried(error, [&] {
    if (stream == nullptr) throw invalid("reset: NULL for the stream");
    Use use(&stream, 1);
    stream->program->reset(stream->row);
  });
}

size_t edgelstm_state_size(const edgelstm_program* program) { return program == nullptr ? 0 : program->state_size; }

int edgelstm_state_save(edgelstm_stream* stream, void* data, size_t size, edgelstm_error* error) {
  return tried(error, [&] {
    if (stream == nullptr || data == nullptr) throw invalid("state_save: NULL for the stream or for where it goes");
    if (size != stream->program->state_size)
      throw invalid("state_save: found " + std::to_string(size) + " bytes; expected " + std::to_string(stream->program->state_size),
                    "edgelstm_state_size tells");
    Use use(&stream, 1);
    std::string file = stream->program->save(stream->row);
    memcpy(data, file.data(), file.size());
  });
}

int edgelstm_state_load(edgelstm_stream* stream, const void* data, size_t size, edgelstm_error* error) {
  return tried(error, [&] {
    if (stream == nullptr || data == nullptr) throw invalid("state_load: NULL for the stream or for the snapshot");
    Use use(&stream, 1);
    stream->program->load(stream->row, data, size);
  });
}

}  // extern "C"
