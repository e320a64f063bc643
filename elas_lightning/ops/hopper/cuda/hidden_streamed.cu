// The packed form (fragments.py) of S(relu(z upT)^2) for any rank; with KEEPS relu of the pre-activations as well.

#include "streamed.cuh"

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ TensorMap z_map, const __grid_constant__ TensorMap up_map, uint4* values,
           uint2* codes, uint2* kept, int tokens, int features, int feature_blocks, int steps, int depth) {
  extern __shared__ char raw[];
  Ring ring((shared_address(raw) + 1023) & ~1023u, SLOTS, SLOT);
  const int group = threadIdx.x / 128, stride = gridDim.x / CLUSTER;
  Tiles tiles((tokens + TOKENS - 1) / TOKENS, feature_blocks, cluster_rank());
  if (threadIdx.x == 0) {
    ring.init();
    bars_are_made();
  }
  cluster_sync();
  if (group == 0) {
    fewer_registers<FEW>();
    if (threadIdx.x == 0)
      for (int tile = blockIdx.x / CLUSTER; tile < tiles.count(); tile += stride) {
        tiles.choose(tile);
        for (int k = 0; k < depth; ++k) load_step(ring, &z_map, &up_map, tiles, k * 64);
      }
  } else {
    more_registers<MANY>();
    const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, half = group - 1, q = lane & 3;
    const bool odd = lane & 1;
    float d[128];
    for (int tile = blockIdx.x / CLUSTER; tile < tiles.count(); tile += stride) {
      tiles.choose(tile);
      multiply(d, ring, depth, half, thread);
      if (tiles.token_block * TOKENS >= tokens) continue;
#if KEEPS
      const int row = tiles.token_block * TOKENS + half * 64 + warp * 16 + lane / 4;
      const int column = tiles.feature_block * FEATURES + 4 * q;
#endif
      const size_t rows16 = tiles.token_block * 8 + half * 4 + warp;
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {  // 64 features
        const int step = tiles.feature_block * 4 + pair;
        const size_t at = rows16 * steps + step;
        uint32_t words[2];
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          Packed both[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            uint32_t r[4];
            relus(d + 32 * pair + 16 * w + 8 * i, r);
#if KEEPS
            const int at = column + 64 * pair + 32 * w + 16 * i;
            const uint32_t upper = (uint32_t)row * (features / 4) + at / 4;
            if (row < tokens && at < features) kept[upper] = upper_row(r);
            if (row + 8 < tokens && at < features) kept[upper + 2 * features] = lower_row(r);
#endif
            both[i] = pack(r, q);
          }
          const Packed first = both[0], second = both[1];
          words[w] = gather_codes(first.code, second.code, odd);
          if (step < steps)
            values[at * 64 + w * 32 + lane] = make_uint4(first.upper, first.lower, second.upper, second.lower);
        }
        if (step < steps && !(lane & 2)) codes[at * 16 + lane / 4 * 2 + odd] = make_uint2(words[0], words[1]);
      }
    }
  }
  cluster_sync();
}
