// A ConvGRU's step by Winograd's algorithm, from what winograd_kernels.h has. Part of kernels.cpp, inside its namespace, compiled once for
// each set of instructions. The same operations in the same order for every tile, here too.

// products[tile][sum] of R tiles at one point; sums: z, r, n of x and, where H is 3, n of h, which stays apart.
template <int H, int R>
INLINE void gru_product(const float* patches, int64_t stride, int64_t inputs, const float* x_weights, int64_t hidden, const float* h_weights,
                        float* products) {
  constexpr int G = H + 1;
  vf sum[R][G];
  for (int r = 0; r < R; r++)
    for (int g = 0; g < G; g++) sum[r][g] = vf{};
  const float* end = patches + inputs;
#pragma GCC unroll 1
  for (; patches != end; patches++, x_weights += 3 * L)
    for (int r = 0; r < R; r++) {
      vf value = splat(patches[r * stride]);
      for (int g = 0; g < 3; g++) sum[r][g] += value * load(x_weights + g * L);
    }
  end = patches + hidden;
#pragma GCC unroll 1
  for (; patches != end; patches++, h_weights += H * L)
    for (int r = 0; r < R; r++) {
      vf value = splat(patches[r * stride]);
      for (int g = 0; g < H; g++) sum[r][g < 2 ? g : 3] += value * load(h_weights + g * L);
    }
  for (int r = 0; r < R; r++)
    for (int g = 0; g < G; g++) store(products + (r * G + g) * L, sum[r][g]);
}

template <int H, int R>
INLINE void gru_rest(int64_t left, const float* patches, int64_t stride, int64_t inputs, const float* x_weights, int64_t hidden,
                     const float* h_weights, float* products) {
  if constexpr (R > 0) {
    if (left == R) {
      gru_product<H, R>(patches, stride, inputs, x_weights, hidden, h_weights, products);
    } else {
      gru_rest<H, R - 1>(left, patches, stride, inputs, x_weights, hidden, h_weights, products);
    }
  }
}

// What comes behind the sums of a tile; p: z, r, n of x, n of h.
template <int H>
INLINE void gru_cells(const ConvGruStep& s, int64_t panel, const Place& at, vf (&p)[H + 1][16]) {
  const ConvStep& m = s.maps;
  int64_t size = m.height * m.width, unit = panel * L, count = m.units - unit, maps = (at.stream * m.units + unit) * size;
  vf old[16] = {}, one[16], other[16];
  read_tile(s.old + maps, size, 1, m.width, at, count, old);
  for (int k = 0; k < 16; k++) {
    Gate z = gate(m.variant, p[0][k]), used = gate(m.variant, p[1][k]);
    vf reset = used.top / used.bottom;
    if constexpr (H == 3) {
      one[k] = blend(z, cell(m.variant.candidate_relu, p[2][k] + reset * p[3][k]), old[k]);
    } else {
      one[k] = z.top / z.bottom, other[k] = reset * old[k];
    }
  }
  if constexpr (H == 3) {
    if (m.h_bounds.bad != nullptr && !within(m.h_bounds, at, count, one)) __atomic_store_n(m.h_bounds.bad, 1, __ATOMIC_RELAXED);
    write_tile(m.h_out + maps, size, m.width, at, count, one);
  } else {
    write_tile(s.z + maps, size, m.width, at, count, one);
    write_tile(s.reset_h + maps, size, m.width, at, count, other);
    write_tile(m.h_out + maps, size, m.width, at, count, p[2]);
  }
}

template <int H>
INLINE void gru_maps_block(const ConvGruStep& s, int64_t panel, int64_t block, float* scratch) {
  constexpr int G = H + 1;
  const ConvStep& m = s.maps;
  int64_t total = m.lines * m.across, start = block * m.block, tiles = total - start < m.block ? total - start : m.block, next = m.block * G * L;
  int64_t x_next = m.inputs * 3 * L, h_next = m.hidden * H * L;
  for (int64_t point = 0; point < kPoints; point++) {
    const float* from = m.patches + (block * kPoints + point) * m.block * m.stride;
    const float *x_matrix = s.x_transformed + (panel * kPoints + point) * x_next, *h_matrix = s.h_transformed + (panel * kPoints + point) * h_next;
    float* to = scratch + point * next;
    int64_t t = 0;
    for (; t + kTogether <= tiles; t += kTogether)
      gru_product<H, kTogether>(from + t * m.stride, m.stride, m.inputs, x_matrix, m.hidden, h_matrix, to + t * G * L);
    gru_rest<H, kTogether - 1>(tiles - t, from + t * m.stride, m.stride, m.inputs, x_matrix, m.hidden, h_matrix, to + t * G * L);
  }
  const float *x_bias = s.x_bias + panel * 3 * L, *h_bias = s.h_bias + panel * H * L;
  float bias[G * L];
  memcpy(bias, x_bias, 3 * L * sizeof(float));
  if constexpr (H == 3) memcpy(bias + 3 * L, h_bias + 2 * L, L * sizeof(float));
  for (int64_t t = 0; t < tiles; t++) {
    Place at = place_of(m, start + t);
    vf p[G][16];
    if (m.direct_tiles[start + t]) {
      float* patch = scratch + kPoints * next;
      read_patch(m, at, patch);
      vf of_x[3][16], of_h[H][16];
      conv_direct<3>(patch, m.inputs, s.x_direct + panel * kTaps * x_next, x_bias, of_x);
      conv_direct<H>(patch + m.inputs * kPoints, m.hidden, s.h_direct + panel * kTaps * h_next, h_bias, of_h);
      for (int k = 0; k < 16; k++) {
        for (int g = 0; g < 2; g++) p[g][k] = of_x[g][k] + of_h[g][k];
        p[2][k] = of_x[2][k];
        if constexpr (H == 3) p[3][k] = of_h[2][k];
      }
    } else {
      conv_output<G>(scratch + t * G * L, next, bias, p);
    }
    gru_cells<H>(s, panel, at, p);
  }
}

// Of [first, last) of panels * blocks. scratch: [point][tile of a block][4, or 3 where not `after`][lanes], then [inputs + hidden][36].
void conv_gru(const ConvGruStep& s, int64_t first, int64_t last, float* scratch) {
  int64_t blocks = (s.maps.lines * s.maps.across + s.maps.block - 1) / s.maps.block;
  for (int64_t unit = first; unit < last; unit++) {
    if (s.after) {
      gru_maps_block<3>(s, unit / blocks, unit % blocks, scratch);
    } else {
      gru_maps_block<2>(s, unit / blocks, unit % blocks, scratch);
    }
  }
}

template <int G>
INLINE void conv_candidate_block(const ConvGruStep& s, int64_t panel, int64_t block, float* scratch) {
  const ConvStep& m = s.maps;
  int64_t total = m.lines * m.across, start = block * m.block, tiles = total - start < m.block ? total - start : m.block, next = m.block * G * L;
  int64_t matrix_size = m.hidden * G * L, size = m.height * m.width;
  for (int64_t point = 0; point < kPoints; point++) {
    const float *from = m.patches + (block * kPoints + point) * m.block * m.stride, *matrix = s.n_transformed + (panel * kPoints + point) * matrix_size;
    float* to = scratch + point * next;
    int64_t t = 0;
    for (; t + kTogether <= tiles; t += kTogether) conv_product<G, kTogether>(from + t * m.stride, m.stride, m.hidden, matrix, to + t * G * L);
    conv_rest<G, kTogether - 1>(tiles - t, from + t * m.stride, m.stride, m.hidden, matrix, to + t * G * L);
  }
  const float* bias = s.n_bias + panel * G * L;
  for (int64_t t = 0; t < tiles; t++) {
    Place at = place_of(m, start + t);
    vf p[G][16];
    if (m.direct_tiles[start + t]) {
      float* patch = scratch + kPoints * next;
      read_patch(m, at, patch);
      conv_direct<G>(patch, m.hidden, s.n_direct + panel * kTaps * matrix_size, bias, p);
    } else {
      conv_output<G>(scratch + t * G * L, next, bias, p);
    }
    for (int g = 0; g < G; g++) {
      int64_t unit = (panel * G + g) * L, count = m.units - unit, maps = (at.stream * m.units + unit) * size;
      if (count <= 0) break;
      vf old[16] = {}, z[16] = {}, of_x[16] = {}, h[16];
      read_tile(s.old + maps, size, 1, m.width, at, count, old);
      read_tile(s.z + maps, size, 1, m.width, at, count, z);
      read_tile(m.h_out + maps, size, 1, m.width, at, count, of_x);
      for (int k = 0; k < 16; k++) {
        vf n = value(cell(m.variant.candidate_relu, of_x[k] + p[g][k]));
        h[k] = n + z[k] * (old[k] - n);
      }
      if (m.h_bounds.bad != nullptr && !within(m.h_bounds, at, count, h)) __atomic_store_n(m.h_bounds.bad, 1, __ATOMIC_RELAXED);
      write_tile(m.h_out + maps, size, m.width, at, count, h);
    }
  }
}

// Of [first, last) of panels of n * blocks. scratch: [point][tile of a block][n_width][lanes], then [hidden][36].
void conv_candidate(const ConvGruStep& s, int64_t first, int64_t last, float* scratch) {
  int64_t blocks = (s.maps.lines * s.maps.across + s.maps.block - 1) / s.maps.block;
  for (int64_t unit = first; unit < last; unit++) {
    int64_t panel = unit / blocks, block = unit % blocks;
    if (s.n_width == 4) {
      conv_candidate_block<4>(s, panel, block, scratch);
    } else if (s.n_width == 3) {
      conv_candidate_block<3>(s, panel, block, scratch);
    } else if (s.n_width == 2) {
      conv_candidate_block<2>(s, panel, block, scratch);
    } else {
      conv_candidate_block<1>(s, panel, block, scratch);
    }
  }
}
