/* step MODEL OPERATORS INPUTS OUTPUTS: for each number on standard input as many steps through the C library, timed one by one.
 * Prints the median and the smallest time in nanoseconds, and the first output after the last step. OPERATORS: a library, or "". */
#define _POSIX_C_SOURCE 200809L
#include <edgelstm.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int compare(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

int main(int count, char **arguments) {
  if (count != 5) return 2;
  size_t takes = strtoul(arguments[3], NULL, 10), gives = strtoul(arguments[4], NULL, 10);
  edgelstm_error error;
  edgelstm_options options = EDGELSTM_OPTIONS;
  options.threads = 1, options.operators = arguments[2];
  edgelstm_program *program;
  edgelstm_stream *stream;
  if (edgelstm_open(arguments[1], &options, &program, &error) || edgelstm_stream_new(program, &stream, &error))
    return fprintf(stderr, "%s. %s\n", error.what, error.hint), 1;
  float *x = malloc(takes * sizeof *x), *y = malloc(gives * sizeof *y);
  if (x == NULL || y == NULL) return 1;
  edgelstm_input in = {x, takes * sizeof *x};
  edgelstm_output out = {y, gives * sizeof *y};
  long step = 0;
  size_t steps;
  while (scanf("%zu", &steps) == 1) {
    int64_t *times = malloc(steps * sizeof *times);
    if (times == NULL) return 1;
    for (size_t k = 0; k < steps; k++, step++) {
      for (size_t n = 0; n < takes; n++) x[n] = (float)((step * 7 + (long)n * 3) % 16) / 8.0f - 1.0f;
      int64_t begin = now();
      if (edgelstm_step(&stream, 1, &in, &out, &error)) return fprintf(stderr, "%s\n", error.what), 1;
      times[k] = now() - begin;
    }
    qsort(times, steps, sizeof *times, compare);
    printf("%lld %lld %.9g\n", (long long)times[steps / 2], (long long)times[0], y[0]);
    fflush(stdout);
    free(times);
  }
  edgelstm_close(program);
  free(x);
  free(y);
  return 0;
}
