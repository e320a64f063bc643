// The hidden features again, and the gradient of their pre-activations, for ranks up to R, 128 or 256: z and the
// output's gradient stay in shared memory, features stream by. The gradient's product runs while relu is taken of the
// pre-activations; the next tile's pre-activations while this one is written.

#include "resident.cuh"
#include "slopes.cuh"

constexpr int SLOTS = slots_beside(2 * STAY, 10);

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ TensorMap z_map, const __grid_constant__ TensorMap up_map,
           const __grid_constant__ TensorMap grad_map, const __grid_constant__ TensorMap down_map, uint2* hidden,
           uint2* grad_hidden, int tokens, int features, int feature_blocks, int parts) {
  extern __shared__ char raw[];
  const uint32_t z_at = (shared_address(raw) + 1023) & ~1023u, g_at = z_at + STAY;
  Ring ring(g_at + STAY, SLOTS, BOX);
  const uint32_t rows_full = ring.end();
  const int group = threadIdx.x / 128, rank = cluster_rank();
  start(ring, rows_full);
  const Part part(feature_blocks, parts, rank);
  if (group == 0) {
    fewer_registers<FEW>();
    if (threadIdx.x == 0) {
      bar_expect(rows_full, 2 * STAY);
      load_rows(z_at, &z_map, part.token_block, rows_full);
      load_rows(g_at, &grad_map, part.token_block, rows_full);
      for (int block = part.begin; block < part.end; ++block) {
        for (int k = 0; k < K; ++k) load_features(ring, &up_map, k, block, rank);
        for (int k = 0; k < K; ++k) load_features(ring, &down_map, k, block, rank);
      }
    }
  } else {
    more_registers<MANY>();
    const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, half = group - 1;
    const int row = part.token_block * TOKENS + half * 64 + warp * 16 + lane / 4;
    Products products = {ring, half, thread};
    float x[64], g[64];
    uint32_t r[32];
    auto write = [&](int i, int block) {
      const Slopes slopes = {hidden, grad_hidden, tokens, features, row, block * 128 + 4 * (lane & 3)};
      slopes.write(r + 4 * i, g + 8 * i, i);
    };
    auto gradient = [&]() {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        products.step(g, g_at, k);
        if (k == 0) settle(x);
#pragma unroll
        for (int i = 8 * k / K; i < 8 * (k + 1) / K; ++i)
#pragma unroll
          for (int m = 0; m < 4; ++m) r[4 * i + m] = relu(x[8 * i + place(m)], x[8 * i + place(m) + 2]);
      }
      wait<0>();  // ptxas does not see otherwise that g is complete when it is read, and would let products wait
    };
    bar_wait(rows_full, 0);
#pragma unroll
    for (int k = 0; k < K; ++k) products.step(x, z_at, k);
    gradient();
    for (int block = part.begin + 1; block < part.end; ++block) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        products.step(x, z_at, k);
        if (k == 0) settle(g);
#pragma unroll
        for (int i = 8 * k / K; i < 8 * (k + 1) / K; ++i) write(i, block - 1);
      }
      gradient();
    }
    settle(g);
#pragma unroll
    for (int i = 0; i < 8; ++i) write(i, part.end - 1);
  }
  cluster_sync();
}
