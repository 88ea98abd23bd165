// What stands around the cells: dense layers and normalisation. Part of kernels.cpp, inside its namespace, compiled once for each
// set of instructions.

template <int R, int U>
INLINE void dense_block(const DenseStep& s, int64_t panel, int64_t row) {
  int64_t next = s.inputs * L;
  vf sum[R][U][1];
  for (int r = 0; r < R; r++)
    for (int u = 0; u < U; u++) sum[r][u][0] = load(s.bias + (panel + u) * L);
  multiply<1, R, U>(sum, s.x + row * s.inputs, s.inputs, s.inputs, s.panels + panel * next, next);
  for (int u = 0; u < U; u++) {
    int64_t unit = (panel + u) * L, left = s.units - unit;
    for (int r = 0; r < R; r++) {
      int64_t at = (row + r) * s.units + unit;
      vf y = sum[r][u][0];
      if (s.activation == 1) {
        Gate g = sigmoid(y);
        y = g.top / g.bottom;
      } else if (s.activation == 2) {
        y = value(tanh_(y));
      } else if (s.activation == 3) {
        y = at_least(y, 0);
      }
      if (s.factor != nullptr) y *= load(s.factor + at, left);
      store(s.y + at, y, left);
    }
  }
}

void dense(const DenseStep& s, int64_t first, int64_t last) {
  int64_t row = 0;
  if constexpr (ROWS > 3)
    for (; row + 4 <= s.rows; row += 4) {
      int64_t panel = first;
      for (; panel + 4 <= last; panel += 4) dense_block<4, 4>(s, panel, row);
      for (; panel < last; panel++) dense_block<4, 1>(s, panel, row);
    }
  for (; row < s.rows; row++) {
    int64_t panel = first;
    for (; panel + 8 <= last; panel += 8) dense_block<1, 8>(s, panel, row);
    for (; panel + 4 <= last; panel += 4) dense_block<1, 4>(s, panel, row);
    for (; panel < last; panel++) dense_block<1, 1>(s, panel, row);
  }
}

INLINE float total(vf v) {
  float sum = 0;
  for (int k = 0; k < L; k++) sum += v[k];
  return sum;
}

// (x - mean) / sqrt(variance + epsilon) * gain + bias over the last axis, in two passes as the equation stands.
void norm(const NormStep& s) {
  for (int64_t row = 0; row < s.rows; row++) {
    const float* x = s.x + row * s.size;
    float* y = s.y + row * s.size;
    vf sum{};
    for (int64_t k = 0; k < s.size; k += L) sum += load(x + k, s.size - k);
    float mean = total(sum) / s.size;
    vf squares{};
    int64_t k = 0;
    for (; k + L <= s.size; k += L) {
      vf d = load(x + k) - mean;
      squares += d * d;
    }
    float rest = 0;
    for (; k < s.size; k++) rest += (x[k] - mean) * (x[k] - mean);
    float scale = 1 / __builtin_sqrtf((total(squares) + rest) / s.size + s.epsilon);
    for (k = 0; k < s.size; k += L) {
      int64_t left = s.size - k;
      store(y + k, (load(x + k, left) - mean) * scale * load(s.gain + k, left) + load(s.bias + k, left), left);
    }
  }
}
