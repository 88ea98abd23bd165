/* Speech without its noise: the two models of DTLN (breizhn/DTLN), a block of 512 samples every 128, as they come.
 *
 *     denoise dtln_1.onnx dtln_2.onnx < noisy.wav > clean.wav       16 bits, 16 kHz, mono
 */
#include <edgelstm.h>
#include <stdlib.h>

#include "sound.h"

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

int main(int count, char **arguments) {
  if (count != 3) return fprintf(stderr, "denoise dtln_1.onnx dtln_2.onnx < noisy.wav > clean.wav\n"), 2;
  edgelstm_stream *first = opened(arguments[1]), *second = opened(arguments[2]);
  if (!wav_header(stdin, stdout)) return fprintf(stderr, "denoise: no WAV file of 16 bits, 16 kHz, mono\n"), 2;
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
    if (fwrite(pcm, 2, got, stdout) != got) break;
  }
  if (fflush(stdout) || ferror(stdout)) return fprintf(stderr, "denoise: the output can't be written\n"), 2;
  return 0;
}
