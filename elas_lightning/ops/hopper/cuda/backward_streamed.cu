// The hidden features again, and the gradient of their pre-activations, for any rank. With KEEPS relu of the
// pre-activations is read, not computed.

#include "streamed.cuh"
#include "slopes.cuh"

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ TensorMap z_map, const __grid_constant__ TensorMap up_map,
           const __grid_constant__ TensorMap grad_map, const __grid_constant__ TensorMap down_map, const uint2* kept,
           uint2* hidden, uint2* grad_hidden, int tokens, int features, int token_blocks,
           int feature_blocks, int z_depth, int grad_depth) {
  extern __shared__ char raw[];
  Ring ring((shared_address(raw) + 1023) & ~1023u, SLOTS, SLOT);
  const int group = threadIdx.x / 128, stride = gridDim.x / CLUSTER;
  Tiles tiles(token_blocks, feature_blocks, cluster_rank());
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
#if !KEEPS
        for (int k = 0; k < z_depth; ++k) load_step(ring, &z_map, &up_map, tiles, k * 64);
#endif
        for (int k = 0; k < grad_depth; ++k) load_step(ring, &grad_map, &down_map, tiles, k * 64);
      }
  } else {
    more_registers<MANY>();
    const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, half = group - 1;
    float d[128];
    uint32_t r[64];
    for (int tile = blockIdx.x / CLUSTER; tile < tiles.count(); tile += stride) {
      tiles.choose(tile);
      const int row = tiles.token_block * TOKENS + half * 64 + warp * 16 + lane / 4;
      Slopes slopes = {hidden, grad_hidden, tokens, features, row, tiles.feature_block * FEATURES + 4 * (lane & 3)};
#if KEEPS
#pragma unroll
      for (int i = 0; i < 16; ++i) slopes.read(kept, r + 4 * i, i);
#else
      multiply(d, ring, z_depth, half, thread);
#pragma unroll
      for (int i = 0; i < 16; ++i)
#pragma unroll
        for (int m = 0; m < 4; ++m) r[4 * i + m] = relu(d[8 * i + place(m)], d[8 * i + place(m) + 2]);
#endif
      multiply(d, ring, grad_depth, half, thread);
#if KEEPS
      asm volatile("" : "+r"(slopes.row));  // else the addresses of what was read take registers until they are written
#endif
#pragma unroll
      for (int i = 0; i < 16; ++i) slopes.write(r + 4 * i, d + 8 * i, i);
    }
  }
  cluster_sync();
}
