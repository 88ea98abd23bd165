/* A forecast for every sample of six sensors, without Python: float32 samples on standard input, 6 each; the next eight of all
 * six on standard output, 48 each. With a second argument the state is kept in that file from run to run, for Python's Runner too.
 *
 *     sensor model.onnx [state.npz] < samples.f32 > forecast.f32
 */
#include <edgelstm.h>
#include <stdio.h>
#include <stdlib.h>

#define SENSORS 6
#define AHEAD 8

static edgelstm_error error;

static void check(int code) {
  if (code == EDGELSTM_OK) return;
  fprintf(stderr, "sensor: %s. %s\n", error.what, error.hint);
  exit(2);
}

int main(int count, char **arguments) {
  if (count < 2) return fprintf(stderr, "sensor model.onnx [state.npz] < samples.f32 > forecast.f32\n"), 2;
  const char *kept = count > 2 ? arguments[2] : NULL;
  edgelstm_options options = EDGELSTM_OPTIONS;
  options.threads = 1;
  edgelstm_program *program;
  edgelstm_stream *stream;
  check(edgelstm_open(arguments[1], &options, &program, &error));
  check(edgelstm_stream_new(program, &stream, &error));

  size_t size = edgelstm_state_size(program);
  char *state = malloc(size);
  if (state == NULL) return 2;
  FILE *file = kept ? fopen(kept, "rb") : NULL;
  if (file != NULL) { /* one that was cut short is refused */
    size_t found = fread(state, 1, size, file);
    fclose(file);
    check(edgelstm_state_load(stream, state, found, &error));
  }

  float sample[SENSORS], forecast[AHEAD * SENSORS];
  edgelstm_input in = {sample, sizeof sample};
  edgelstm_output out = {forecast, sizeof forecast};
  while (fread(sample, sizeof sample, 1, stdin) == 1) {
    check(edgelstm_step(&stream, 1, &in, &out, &error));
    fwrite(forecast, sizeof forecast, 1, stdout);
    fflush(stdout);
  }

  if (kept != NULL) {
    check(edgelstm_state_save(stream, state, size, &error));
    char beside[4096]; /* whole or not at all: what ends this program amid the writing leaves the state of before */
    if (snprintf(beside, sizeof beside, "%s.part", kept) >= (int)sizeof beside) return fprintf(stderr, "sensor: too long a name\n"), 2;
    file = fopen(beside, "wb");
    if (file == NULL || fwrite(state, 1, size, file) != size || fclose(file) != 0 || rename(beside, kept) != 0) return perror(kept), 2;
  }
  free(state);
  edgelstm_close(program);
  return 0;
}
