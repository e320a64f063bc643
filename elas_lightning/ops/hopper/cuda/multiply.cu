// out = h down on the sparse tensor cores, h in the packed form of fragments.py, WIDTH outputs (128 or 256) a program.
//
// A thread loads the values and codes that the matrix instruction wants of it straight into its registers, several
// steps of 64 features ahead; ``down`` passes through shared memory.

constexpr int SLOT = WIDTH * ROW;
constexpr int SLOTS = WIDTH == 256 ? 6 : 8;
constexpr int SETS = WIDTH == 256 ? 6 : 8;  // of registers: one is read, one may still be, the others are on their way

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ TensorMap down_map, const uint4* values, const uint2* codes, uint32_t* out,
           int tokens, int out_width, int steps) {
  extern __shared__ char raw[];
  Ring ring((shared_address(raw) + 1023) & ~1023u, SLOTS, SLOT);
  const int group = threadIdx.x / 128, rank = cluster_rank();
  if (threadIdx.x == 0) {
    ring.init();
    bars_are_made();
  }
  cluster_sync();
  const int columns = (out_width + WIDTH - 1) / WIDTH, cluster = blockIdx.x / CLUSTER;
  const int token_block = cluster / columns * CLUSTER + rank, column_block = cluster % columns;
  if (group == 0) {
    fewer_registers<FEW>();
    if (threadIdx.x == 0)
      for (int step = 0; step < steps; ++step) {
        const uint32_t bar = ring.reserve();
        load_both(ring.slot() + rank * (SLOT / 2), &down_map, step * 64,
                  column_block * WIDTH + rank * (WIDTH / 2), bar);
        ring.advance();
      }
  } else {
    more_registers<MANY>();
    const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, half = group - 1;
    // a second program without tokens computes what the first does, and writes nothing
    const size_t rows16 = token_block * TOKENS < tokens ? token_block * 8 + half * 4 + warp : 0;
    const uint4* value = values + rows16 * steps * 64 + lane;
    const uint2* code = codes + rows16 * steps * 16 + lane / 4 * 2 + (lane & 1);
    uint32_t a[SETS][2][4];
    uint2 e[SETS];
    float d[WIDTH / 2];
#pragma unroll
    for (int i = 0; i < WIDTH / 2; ++i) d[i] = 0;
    settle(d);
    int loaded = 0;
    auto fetch = [&](uint32_t (&to)[2][4], uint2& codes64) {
      if (loaded == steps) return;
      const uint4 first = __ldg(value), second = __ldg(value + 32);
      to[0][0] = first.x, to[0][1] = first.y, to[0][2] = first.z, to[0][3] = first.w;
      to[1][0] = second.x, to[1][1] = second.y, to[1][2] = second.z, to[1][3] = second.w;
      codes64 = __ldg(code);
      value += 64;
      code += 16;
      ++loaded;
    };
#pragma unroll
    for (int u = 0; u < SETS - 2; ++u) fetch(a[u], e[u]);
    for (int begin = 0; begin < steps; begin += SETS) {
#pragma unroll
      for (int u = 0; u < SETS; ++u) {
        if (begin + u < steps) {
          fetch(a[(u + SETS - 2) % SETS], e[(u + SETS - 2) % SETS]);
          ring.await();
          const uint64_t b = operand(ring.slot());
          fence();
          sparse<WIDTH>(d, a[u][0], b, e[u].x);
          sparse<WIDTH>(d, a[u][1], b + 4, e[u].y);
          commit();
          ring.advance();
          wait<1>();
          if (begin + u > 0) ring.release(thread);
        }
      }
    }
    wait<0>();
    settle(d);
    const int row = token_block * TOKENS + half * 64 + warp * 16 + lane / 4;
    const int column = column_block * WIDTH + 2 * (lane & 3);
#pragma unroll
    for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (row + 8 * i < tokens && column + 8 * j < out_width)
          out[((size_t)(row + 8 * i) * out_width + column + 8 * j) / 2] =
              rounded(d[4 * j + 2 * i], d[4 * j + 2 * i + 1]);
  }
  cluster_sync();
}
