// The hidden features, and the gradient of their pre-activations, from relu of these, which forward has kept; for ranks
// up to R, a multiple of 128 of at most 512: the output's gradient stays in shared memory, features stream by. While a
// tile's product runs, the tile before is written, and what is kept of this one is read.

#include "resident.cuh"
#include "slopes.cuh"

constexpr int SLOTS = slots_beside(STAY, 10);

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ TensorMap grad_map, const __grid_constant__ TensorMap down_map, const uint2* kept,
           uint2* hidden, uint2* grad_hidden, int tokens, int features, int feature_blocks, int parts) {
  extern __shared__ char raw[];
  const uint32_t g_at = (shared_address(raw) + 1023) & ~1023u;
  Ring ring(g_at + STAY, SLOTS, BOX);
  const uint32_t rows_full = ring.end();
  const int group = threadIdx.x / 128, rank = cluster_rank();
  start(ring, rows_full);
  const Part part(feature_blocks, parts, rank);
  if (group == 0) {
    fewer_registers<FEW>();
    if (threadIdx.x == 0) {
      bar_expect(rows_full, STAY);
      load_rows(g_at, &grad_map, part.token_block, rows_full);
      for (int block = part.begin; block < part.end; ++block)
        for (int k = 0; k < K; ++k) load_features(ring, &down_map, k, block, rank);
    }
  } else {
    more_registers<MANY>();
    const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, half = group - 1;
    const int row = part.token_block * TOKENS + half * 64 + warp * 16 + lane / 4;
    Products products = {ring, half, thread};
    float g[2][64];
    uint32_t r[32];
    auto slopes = [&](int block) -> Slopes {
      return {hidden, grad_hidden, tokens, features, row, block * 128 + 4 * (lane & 3)};
    };
    bar_wait(rows_full, 0);
    by_turns(g, products, g_at, part, [&](const float (&o)[64], int i, int block, bool multiplies, bool finishes) {
      if (finishes) slopes(block - 1).write(r + 4 * i, o + 8 * i, i);
      if (multiplies) slopes(block).read(kept, r + 4 * i, i);
    });
  }
  cluster_sync();
}
