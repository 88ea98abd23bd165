/* What denoise.c needs besides the models: the header of a WAV file, and a Fourier transform. */
#include <complex.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Reads up to the samples of a WAV file of 16 bits, 16 kHz, mono, and writes as much to the other one; 0 where it is of another kind. */
static int wav_header(FILE *in, FILE *out) {
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

/* Cooley and Tukey's, of a power of two; sign -1: forwards, 1: backwards, n times too large. step: 1. */
static void transform(const double complex *x, int n, int step, double complex *out, int sign) {
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
