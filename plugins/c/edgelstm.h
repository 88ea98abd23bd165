/* edgelstm.h: run a step graph of edgelstm from C or C++, without Python. See docs/c.md.
 *
 * A program is an opened model; its streams each have a state that moves on by a frame a step. ONNX Runtime (1.18 or later)
 * is loaded when the first program is opened; nothing is linked.
 *
 * Functions that can fail return EDGELSTM_OK or the code of the error, and fill `error` unless it is NULL. After an error
 * nothing has changed: no state, no output, no pointer that was to be filled.
 *
 * Threads: programs are independent of each other. Streams of one program may be used from several threads and take turns; a
 * stream that another thread is using is EDGELSTM_BUSY. To free a stream waits for a call that is running on it; a program is closed
 * when no call is running.
 */
#ifndef EDGELSTM_H
#define EDGELSTM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) || defined(__clang__)
#define EDGELSTM_API __attribute__((visibility("default")))
#else
#define EDGELSTM_API
#endif

/* Grows when a program compiled with an older header would misbehave. */
#define EDGELSTM_ABI_VERSION 1

enum {
  EDGELSTM_OK = 0,
  EDGELSTM_INVALID = 1,     /* an argument: NULL, a wrong size, a stream named twice, streams of two programs */
  EDGELSTM_ABI = 2,         /* this header and the library are of different versions */
  EDGELSTM_LIBRARY = 3,     /* ONNX Runtime, TensorRT, the driver or the library of operators is missing or too old */
  EDGELSTM_MODEL = 4,       /* the model's file: missing, cut short, without a Signature */
  EDGELSTM_FULL = 5,        /* all places for streams are taken */
  EDGELSTM_BUSY = 6,        /* another thread is using the stream */
  EDGELSTM_RUN = 7,         /* ONNX Runtime, TensorRT or the GPU failed in a step */
  EDGELSTM_SNAPSHOT = 8,    /* bytes that are no snapshot, or one of other states */
  EDGELSTM_OTHER_MODEL = 9, /* a snapshot of another model */
  EDGELSTM_MEMORY = 10,     /* out of memory */
  EDGELSTM_DEVICE = 11      /* no GPU, one that the engine was not built for, or one with too little memory */
};

/* Filled by the call that failed: UTF-8, what is wrong, and what to do about it (may be empty). */
typedef struct edgelstm_error {
  int32_t code;
  char what[508];
  char hint[512];
} edgelstm_error;

/* Zero is the default everywhere. Begin with EDGELSTM_OPTIONS. */
typedef struct edgelstm_options {
  size_t size;             /* sizeof(edgelstm_options) */
  uint32_t abi;            /* EDGELSTM_ABI_VERSION */
  uint32_t streams;        /* places for streams; default 1 */
  uint32_t threads;        /* of ONNX Runtime; default: the processors this process may use */
  uint32_t no_spin;        /* 1: idle threads sleep between operators, and leave the processor to others */
  const char *onnxruntime; /* its library, or a folder that holds it; default: $EDGELSTM_ONNXRUNTIME, the system's, that of
                              the Python environment that is active ($VIRTUAL_ENV) */
  const char *operators;   /* the library of our operators, for models lowered to "native"; default:
                              $EDGELSTM_NATIVE_LIBRARY, else none. For an engine: the plugin's, $EDGELSTM_PLUGIN_LIBRARY */
  const char *device;      /* cpu, cuda or cuda:N; default: cpu, for an engine cuda */
  const char *tensorrt;    /* libnvinfer, or a folder that holds it; default: $EDGELSTM_TENSORRT, the system's */
} edgelstm_options;

#define EDGELSTM_OPTIONS \
  { sizeof(edgelstm_options), EDGELSTM_ABI_VERSION, 0, 0, 0, NULL, NULL, NULL, NULL }

typedef struct edgelstm_program edgelstm_program;
typedef struct edgelstm_stream edgelstm_stream;

/* One stream's frame for one input: the bytes of the tensor without its stream axis, C order. */
typedef struct edgelstm_input {
  const void *data;
  size_t size; /* in bytes */
} edgelstm_input;

/* Where one stream's output goes. data NULL and size 0: it is not wanted. */
typedef struct edgelstm_output {
  void *data;
  size_t size; /* in bytes */
} edgelstm_output;

/* The EDGELSTM_ABI_VERSION that the library was built with. */
EDGELSTM_API uint32_t edgelstm_abi_version(void);

/* Open a step graph, an .onnx file as `edgelstm export` writes it; or, in a library built with TensorRT's headers, an engine (.plan,
 * .engine) with its sidecar (.json) beside it. options may be NULL. */
EDGELSTM_API int edgelstm_open(const char *model, const edgelstm_options *options, edgelstm_program **program,
                               edgelstm_error *error);

/* Free the program and all its streams. NULL is fine. */
EDGELSTM_API void edgelstm_close(edgelstm_program *program);

/* The Signature in the model's file: names, types and shapes of inputs, outputs and states. Lives as long as the program. */
EDGELSTM_API const char *edgelstm_signature_json(const edgelstm_program *program);

/* A new stream, at the model's initial state. */
EDGELSTM_API int edgelstm_stream_new(edgelstm_program *program, edgelstm_stream **stream, edgelstm_error *error);

/* Free a stream and its place. NULL is fine. Using one of the last 1024 streams that were freed is EDGELSTM_INVALID, and
 * freeing it again does nothing, until the program is closed. */
EDGELSTM_API void edgelstm_stream_free(edgelstm_stream *stream);

/* Advance `count` streams of one program by one frame each, in one call; all others keep their state bit for bit.
 *
 * inputs: `count` times as many as the model has inputs, in the order of the Signature, one stream after the other; outputs
 * likewise. Frames are not looked at: NaN goes in as it is, and stays in its stream. Allocates only when streams are
 * stepped together that were not before (ONNX Runtime itself allocates as it does in every run), and takes one lock. */
EDGELSTM_API int edgelstm_step(edgelstm_stream *const *streams, size_t count, const edgelstm_input *inputs,
                               const edgelstm_output *outputs, edgelstm_error *error);

/* Back to the model's initial state. */
EDGELSTM_API int edgelstm_reset(edgelstm_stream *stream, edgelstm_error *error);

/* Bytes of a snapshot: the same for all streams of a program. */
EDGELSTM_API size_t edgelstm_state_size(const edgelstm_program *program);

/* Write the stream's state to `data`, edgelstm_state_size() bytes: an .npz file, byte for byte what `stream.snapshot().save()`
 * of edgelstm's Python Runner writes. */
EDGELSTM_API int edgelstm_state_save(edgelstm_stream *stream, void *data, size_t size, edgelstm_error *error);

/* Set the stream's state from a snapshot of this model, written from C or from Python, uncompressed. */
EDGELSTM_API int edgelstm_state_load(edgelstm_stream *stream, const void *data, size_t size, edgelstm_error *error);

#ifdef __cplusplus
}
#endif

#endif
