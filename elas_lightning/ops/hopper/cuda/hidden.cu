// The packed form (fragments.py) of S(relu(z upT)^2) for ranks up to R, a multiple of 128 of at most 512: the tokens' z
// stays in shared memory, features stream by. While a tile's products run, the tile before is squared, chosen from and
// written. With KEEPS relu of the pre-activations is written, too, dense and row-major, for backward.

#include "resident.cuh"

constexpr int SLOTS = slots_beside(STAY, 12);

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ TensorMap z_map, const __grid_constant__ TensorMap up_map, uint4* values,
           uint2* codes, uint2* kept, int tokens, int features, int feature_blocks, int steps, int parts) {
  extern __shared__ char raw[];
  const uint32_t z_at = (shared_address(raw) + 1023) & ~1023u;
  Ring ring(z_at + STAY, SLOTS, BOX);
  const uint32_t z_full = ring.end();
  const int group = threadIdx.x / 128, rank = cluster_rank();
  start(ring, z_full);
  const Part part(feature_blocks, parts, rank);
  if (group == 0) {
    fewer_registers<FEW>();
    if (threadIdx.x == 0) {
      bar_expect(z_full, STAY);
      load_rows(z_at, &z_map, part.token_block, z_full);
      for (int block = part.begin; block < part.end; ++block)
        for (int k = 0; k < K; ++k) load_features(ring, &up_map, k, block, rank);
    }
  } else {
    more_registers<MANY>();
    const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, half = group - 1, q = lane & 3;
    const bool odd = lane & 1, writes = part.token_block * TOKENS < tokens;
    const size_t rows16 = part.token_block * 8 + half * 4 + warp;
    uint4* value = values + (rows16 * steps + part.begin * 2) * 64 + lane;
    uint2* code = codes + (rows16 * steps + part.begin * 2) * 16 + lane / 4 * 2 + odd;
    float x[2][64];
    uint4 v;
    uint32_t first_codes, word;
    Products products = {ring, half, thread};
    bar_wait(z_full, 0);
    // sixteen features of a finished tile
    auto finish = [&](const float (&y)[64], int i, int block) {
      uint32_t r[4];
      relus(y + 8 * i, r);
#if KEEPS
      const int row = part.token_block * TOKENS + half * 64 + warp * 16 + lane / 4, at = block * 128 + 16 * i + 4 * q;
      const uint32_t upper = (uint32_t)row * (features / 4) + at / 4;
      if (row < tokens && at < features) kept[upper] = upper_row(r);
      if (row + 8 < tokens && at < features) kept[upper + 2 * features] = lower_row(r);
#endif
      const Packed p = pack(r, q);
      if (i % 2 == 0) {
        v.x = p.upper;
        v.y = p.lower;
        first_codes = p.code;
        return;
      }
      v.z = p.upper;
      v.w = p.lower;
      const uint32_t codes32 = gather_codes(first_codes, p.code, odd);
      const bool inside = writes && block * 2 + i / 4 < steps;
      if (inside) value[i / 2 * 32] = v;
      if (i % 4 == 1) word = codes32;
      else if (inside && !(lane & 2)) code[i / 4 * 16] = make_uint2(word, codes32);
      if (i == 7) {
        value += 128;
        code += 32;
      }
    };
    by_turns(x, products, z_at, part, [&](const float (&o)[64], int i, int block, bool, bool finishes) {
      if (finishes) finish(o, i, block - 1);
    });
  }
  cluster_sync();
}
