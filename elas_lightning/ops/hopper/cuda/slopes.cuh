// Backward of sixteen features and sixteen tokens of a thread's warp: the hidden features again, and the gradient of
// their pre-activations, both written dense and row-major.

struct Slopes {
  uint2 *hidden, *grad;
  int tokens, features, row, column;

  // relu of the pre-activations, where forward has kept it
  __device__ __forceinline__ void read(const uint2* kept, uint32_t* r, int x) const {
    const int at = column + 16 * x;
    const uint32_t upper = (uint32_t)row * (features / 4) + at / 4;
    uint2 first = make_uint2(0, 0), second = first;
    if (row < tokens && at < features) first = __ldg(kept + upper);
    if (row + 8 < tokens && at < features) second = __ldg(kept + upper + 2 * features);
    from_rows(first, second, r);
  }
  // r: relu of the pre-activations; g: accumulators of the hidden features' gradient; x: sixteens from ``column`` on
  __device__ __forceinline__ void write(const uint32_t* r, const float* g, int x) const {
    uint32_t h[4], y[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      h[m] = times(r[m], r[m]);
      y[m] = times(rounded(g[place(m)], g[place(m) + 2]), r[m]);
      y[m] = plus(y[m], y[m]);
    }
    const Kept k = two_of(h);
    h[0] &= k.a, h[1] &= k.b, h[2] &= k.c, h[3] &= k.d;
#if MASKED
    y[0] &= k.a, y[1] &= k.b, y[2] &= k.c, y[3] &= k.d;
#endif
    const int at = column + 16 * x;
    const uint32_t upper = (uint32_t)row * (features / 4) + at / 4, lower = upper + 2 * features;
    if (row < tokens && at < features) {
      hidden[upper] = upper_row(h);
      grad[upper] = upper_row(y);
    }
    if (row + 8 < tokens && at < features) {
      hidden[lower] = lower_row(h);
      grad[lower] = lower_row(y);
    }
  }
};
