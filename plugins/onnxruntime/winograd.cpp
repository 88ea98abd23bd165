#include "winograd.h"

#include <cfloat>
#include <cmath>

namespace edgelstm {

namespace {

// Rows of G: what each of the six points makes of a line of the kernel. Those of B and A stand in winograd_kernels.h.
struct Points {
  double g[kPatch][3];
  Points() {
    const double at[] = {0, kPointA, -kPointA, kPointB, -kPointB};
    for (int k = 0; k < 5; k++) {
      double apart = 1;
      for (int j = 0; j < 5; j++)
        if (j != k) apart *= at[k] - at[j];
      for (int j = 0; j < 3; j++) g[k][j] = std::pow(at[k], j) / apart;
    }
    g[5][0] = g[5][1] = 0, g[5][2] = 1;
  }
};

}  // namespace

ConvWeights::ConvWeights(const float* w, const float* b, int64_t units, int64_t gates, int64_t channels, int lanes, bool coded)
    : panels((units + lanes - 1) / lanes),
      transformed(panels * kPoints * channels * gates * lanes),
      direct(panels * channels * kTaps * gates * lanes),
      bias(panels * gates * lanes),
      limit(channels + lanes) {
  static const Points points;
  for (int64_t panel = 0; panel < panels; panel++)
    for (int64_t c = 0; c < channels; c++)
      for (int64_t lane = 0; lane < gates * lanes; lane++) {  // innermost, since lanes lie side by side
        int64_t unit = panel * lanes + lane % lanes, row = lane / lanes * units + unit;
        if (unit >= units) continue;
        if (b != nullptr) bias.data()[panel * gates * lanes + lane] = b[row];
        const float* taps = w + (row * channels + c) * kTaps;
        float* plain = direct.data() + (panel * channels + c) * kTaps * gates * lanes + lane;
        for (int tap = 0; tap < kTaps; tap++) plain[tap * gates * lanes] = taps[tap];
        double half[kPatch][3];
        for (int i = 0; i < kPatch; i++)
          for (int x = 0; x < 3; x++) half[i][x] = points.g[i][0] * taps[x] + points.g[i][1] * taps[3 + x] + points.g[i][2] * taps[6 + x];
        float* to = transformed.data() + (panel * kPoints * channels + c) * gates * lanes + lane;
        for (int i = 0; i < kPatch; i++)
          for (int j = 0; j < kPatch; j++)
            to[(i * kPatch + j) * channels * gates * lanes] =
                static_cast<float>(half[i][0] * points.g[j][0] + half[i][1] * points.g[j][1] + half[i][2] * points.g[j][2]);
      }
  for (int64_t c = 0; c < channels; c++) {
    float most = 0;
    bool finite = true;
    for (int64_t row = 0; row < gates * units; row++)
      for (int tap = 0; tap < kTaps; tap++) {
        float size = std::fabs(w[(row * channels + c) * kTaps + tap]);
        finite = finite && size <= (coded ? kLargestOfCodes : FLT_MAX);
        most = size > most ? size : most;
      }
    // Of a channel with a weight that is no number nothing is ever transformed.
    limit.data()[c] = !finite ? -1 : coded ? kLargest : most > kReach / kLargest ? kReach / most : kLargest;
  }
}

}  // namespace edgelstm
