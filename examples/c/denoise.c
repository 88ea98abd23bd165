/* Speech without its noise: the two models of DTLN (breizhn/DTLN), a block of 512 samples every 128, as they come.
 *
 *     denoise dtln_1.onnx dtln_2.onnx < noisy.wav > clean.wav       16 bits, 16 kHz, mono
 */
#include <complex.h>
#include <edgelstm.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 512, HOP = 128, BINS = BLOCK / 2 + 1 };

static edgelstm_error error;

static void check(int code) {
  if (code == EDGELSTM_OK) return;
  fprintf(stderr, "denoise: %s. %s\n", error.what, error.hint);
  exit(2);
}

static edgelstm_stream *opened(const char *model) {
  edgelstm_options options = EDGELSTM_OPTIONS;
  options.threads = 1;
  edgelstm_program *program;
  edgelstm_stream *stream;
  check(edgelstm_open(model, &options, &program, &error));
  check(edgelstm_stream_new(program, &stream, &error));
  return stream;
}

/* Cooley and Tukey's, of a power of two; sign -1: forwards. */
static void transform(double complex *x, int n, int step, double complex *out, int sign) {
  if (n == 1) {
    out[0] = x[0];
    return;
  }
  transform(x, n / 2, 2 * step, out, sign);
  transform(x + step, n / 2, 2 * step, out + n / 2, sign);
  for (int k = 0; k < n / 2; k++) {
    double complex even = out[k], odd = cexp(sign * 2 * acos(-1) * I * k / n) * out[k + n / 2];
    out[k] = even + odd, out[k + n / 2] = even - odd;
  }
}

/* Reads up to the samples of a WAV file, and writes as much to the other one; 0 where it is of another kind. */
static int header(FILE *in, FILE *out) {
  static const unsigned char fmt[] = {1, 0, 1, 0, 0x80, 0x3e, 0, 0, 0, 0x7d, 0, 0, 2, 0, 16, 0};
  unsigned char chunk[12], body[4096];
  if (fread(chunk, 1, 12, in) != 12 || memcmp(chunk, "RIFF", 4) || fwrite(chunk, 1, 12, out) != 12) return 0;
  for (;;) {
    if (fread(chunk, 1, 8, in) != 8 || fwrite(chunk, 1, 8, out) != 8) return 0;
    if (!memcmp(chunk, "data", 4)) return 1;
    size_t size = chunk[4] | (size_t)chunk[5] << 8 | (size_t)chunk[6] << 16 | (size_t)chunk[7] << 24;
    size += size & 1;
    if (size > sizeof body || fread(body, 1, size, in) != size || fwrite(body, 1, size, out) != size) return 0;
    if (!memcmp(chunk, "fmt ", 4) && (size < sizeof fmt || memcmp(body, fmt, sizeof fmt))) return 0;
  }
}

int main(int count, char **arguments) {
  if (count != 3) return fprintf(stderr, "denoise dtln_1.onnx dtln_2.onnx < noisy.wav > clean.wav\n"), 2;
  edgelstm_stream *first = opened(arguments[1]), *second = opened(arguments[2]);
  if (!header(stdin, stdout)) return fprintf(stderr, "denoise: no WAV file of 16 bits, 16 kHz, mono\n"), 2;
  static float samples[BLOCK], magnitude[BINS], mask[BINS], block[BLOCK], cleaned[BLOCK], sum[BLOCK];
  static double complex x[BLOCK], spectrum[BLOCK];
  edgelstm_input in1 = {magnitude, sizeof magnitude}, in2 = {block, sizeof block};
  edgelstm_output out1 = {mask, sizeof mask}, out2 = {cleaned, sizeof cleaned};
  short pcm[HOP] = {0};
  for (size_t got; (got = fread(pcm, 2, HOP, stdin)) > 0; memset(pcm, 0, sizeof pcm)) {
    memmove(samples, samples + HOP, sizeof samples - HOP * sizeof *samples);
    for (int k = 0; k < HOP; k++) samples[BLOCK - HOP + k] = pcm[k] / 32768.0f;
    for (int k = 0; k < BLOCK; k++) x[k] = samples[k];
    transform(x, BLOCK, 1, spectrum, -1);
    for (int k = 0; k < BINS; k++) magnitude[k] = (float)cabs(spectrum[k]);
    check(edgelstm_step(&first, 1, &in1, &out1, &error));
    for (int k = 0; k < BLOCK; k++) x[k] = spectrum[k] * mask[k < BINS ? k : BLOCK - k];
    transform(x, BLOCK, 1, spectrum, 1);
    for (int k = 0; k < BLOCK; k++) block[k] = (float)(creal(spectrum[k]) / BLOCK);
    check(edgelstm_step(&second, 1, &in2, &out2, &error));
    memmove(sum, sum + HOP, sizeof sum - HOP * sizeof *sum);
    memset(sum + BLOCK - HOP, 0, HOP * sizeof *sum);
    for (int k = 0; k < BLOCK; k++) sum[k] += cleaned[k];
    for (int k = 0; k < HOP; k++) pcm[k] = (short)lrintf(fminf(fmaxf(sum[k], -1), 32767 / 32768.0f) * 32768);
    fwrite(pcm, 2, got, stdout);
  }
  return 0;
}
