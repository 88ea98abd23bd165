// GRU cells. Part of kernels.cpp, inside its namespace, compiled once for each set of instructions.

// The first half where the reset gate works on h itself, else all.
template <class W, int R, int U>
INLINE void gru_block(const GruStep& s, int64_t panel, int64_t row) {
  constexpr bool coded = sizeof(W) == 1;
  vf x_sum[R][U][3], h_sum[R][U][3];
  // Of codes the bias comes after the scale.
  auto bias = [&](bool add) __attribute__((always_inline)) {
    for (int r = 0; r < R; r++)
      for (int u = 0; u < U; u++) {
        const float* from = s.bias + (panel + u) * 4 * L;
        for (int g = 0; g < 3; g++) x_sum[r][u][g] = add ? x_sum[r][u][g] + load(from + g * L) : load(from + g * L);
        h_sum[r][u][2] = add ? h_sum[r][u][2] + load(from + 3 * L) : load(from + 3 * L);
      }
  };
  for (int r = 0; r < R; r++)
    for (int u = 0; u < U; u++)
      for (int g = 0; g < 3; g++) x_sum[r][u][g] = h_sum[r][u][g] = vf{};
  if constexpr (!coded) bias(false);
  int64_t next_x = s.inputs * 3 * L, next_h = s.units * (s.after ? 3 : 2) * L;
  bool by_dot = coded && s.dot != nullptr;
  if (by_dot) {
    dot_product<3, R, U>(x_sum, *s.dot, s.x_rows + row, s.x_panels, panel, s.inputs, 0, false);
  } else {
    multiply<3, R, U>(x_sum, s.x + row * s.inputs, s.inputs, s.inputs, static_cast<const W*>(s.x_panels) + panel * next_x, next_x);
  }
  const float* h = s.h + row * s.units;
  const W* weights = static_cast<const W*>(s.h_panels) + panel * next_h;
  if (s.after) {
    if (by_dot) {
      dot_product<3, R, U>(h_sum, *s.dot, s.h_rows + row, s.h_panels, panel, s.units, 0, false);
    } else {
      multiply<3, R, U>(h_sum, h, s.units, s.units, weights, next_h);
    }
    if constexpr (coded) worth<3, R, U>(h_sum, s.h_scale + panel * 3 * L);
  } else {
    vf two[R][U][2] = {};
    if (by_dot) {
      dot_product<2, R, U>(two, *s.dot, s.h_rows + row, s.h_panels, panel, s.units, 0, false);
    } else {
      multiply<2, R, U>(two, h, s.units, s.units, weights, next_h);
    }
    if constexpr (coded) worth<2, R, U>(two, s.h_scale + panel * 2 * L);
    for (int r = 0; r < R; r++)
      for (int u = 0; u < U; u++)
        for (int g = 0; g < 2; g++) h_sum[r][u][g] = two[r][u][g];
  }
  if constexpr (coded) {
    worth<3, R, U>(x_sum, s.x_scale + panel * 3 * L);
    bias(true);
  }
  for (int u = 0; u < U; u++) {
    int64_t unit = (panel + u) * L, count = s.units - unit;
    for (int r = 0; r < R; r++) {
      int64_t at = (row + r) * s.units + unit;
      vf *a = x_sum[r][u], *b = h_sum[r][u], old = load(s.h + at, count);
      Gate z = gate(s.variant, a[0] + b[0]), used = gate(s.variant, a[1] + b[1]);
      vf reset = used.top / used.bottom;
      if (s.after) {
        store(s.h_out + at, blend(z, cell(s.variant.candidate_relu, a[2] + reset * b[2]), old), count);
      } else {
        store(s.z + at, z.top / z.bottom, count);
        store(s.reset_h + at, reset * old, count);
        store(s.n + at, a[2], count);
      }
    }
  }
}

template <class W>
struct Gru {
  const GruStep& s;
  template <int R, int U>
  INLINE void run(int64_t panel, int64_t row) const {
    gru_block<W, R, U>(s, panel, row);
  }
};

void gru(const GruStep& s, int64_t first, int64_t last) {
  if (s.weights == Weights::kInt8) {
    each_block(first, last, s.rows, Gru<int8_t>{s});
  } else if (s.weights == Weights::kBfloat16) {
    each_block(first, last, s.rows, Gru<uint16_t>{s});
  } else {
    each_block(first, last, s.rows, Gru<float>{s});
  }
}

template <class W, int R, int U>
INLINE void candidate_block(const GruStep& s, int64_t panel, int64_t row) {
  int64_t next = s.units * L;
  constexpr bool coded = sizeof(W) == 1;
  vf sum[R][U][1], from[R][U];
  for (int r = 0; r < R; r++)
    for (int u = 0; u < U; u++) {
      int64_t unit = (panel + u) * L;
      from[r][u] = load(s.n + (row + r) * s.units + unit, s.units - unit) + load(s.bias + ((panel + u) * 4 + 3) * L);
      sum[r][u][0] = coded ? vf{} : from[r][u];
    }
  if (coded && s.dot != nullptr) {
    dot_product<1, R, U>(sum, *s.dot, s.n_rows + row, s.n_panels, panel, s.units, 0, false);
  } else {
    multiply<1, R, U>(sum, s.reset_h + row * s.units, s.units, s.units, static_cast<const W*>(s.n_panels) + panel * next, next);
  }
  if constexpr (coded) {
    worth<1, R, U>(sum, s.n_scale + panel * L);
    for (int r = 0; r < R; r++)
      for (int u = 0; u < U; u++) sum[r][u][0] += from[r][u];
  }
  for (int u = 0; u < U; u++) {
    int64_t unit = (panel + u) * L, count = s.units - unit;
    for (int r = 0; r < R; r++) {
      int64_t at = (row + r) * s.units + unit;
      vf n = value(cell(s.variant.candidate_relu, sum[r][u][0])), old = load(s.h + at, count);
      store(s.h_out + at, n + load(s.z + at, count) * (old - n), count);
    }
  }
}

template <class W>
INLINE void candidate_of(const GruStep& s, int64_t first, int64_t last) {
  int64_t row = 0;
  if constexpr (ROWS > 3)
    for (; row + 4 <= s.rows; row += 4) {
      int64_t panel = first;
      for (; panel + 4 <= last; panel += 4) candidate_block<W, 4, 4>(s, panel, row);
      for (; panel < last; panel++) candidate_block<W, 4, 1>(s, panel, row);
    }
  for (; row < s.rows; row++) {
    int64_t panel = first;
    for (; panel + 8 <= last; panel += 8) candidate_block<W, 1, 8>(s, panel, row);
    for (; panel < last; panel++) candidate_block<W, 1, 1>(s, panel, row);
  }
}

void gru_candidate(const GruStep& s, int64_t first, int64_t last) {
  if (s.weights == Weights::kInt8) {
    candidate_of<int8_t>(s, first, last);
  } else if (s.weights == Weights::kBfloat16) {
    candidate_of<uint16_t>(s, first, last);
  } else {
    candidate_of<float>(s, first, last);
  }
}
