// out = S(relu(z upT)^2) down for ranks up to R, 128 or 256: the hidden features never leave the registers.
//
// A warp group computes the pre-activations of 64 tokens and 128 features, chooses two of four, and multiplies what is
// left, as it stands in its registers, by ``down`` on the sparse tensor cores. While one group chooses, the other
// multiplies.

constexpr int SLOT = R * ROW;  // 128 features of R / 2 numbers of up, or R outputs of 64 features of down
constexpr int SLOTS = R == 128 ? 12 : 5;
constexpr int PARTS = R / 128;

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ TensorMap z_map, const __grid_constant__ TensorMap up_map,
           const __grid_constant__ TensorMap down_map, uint32_t* out, int tokens, int feature_blocks) {
  extern __shared__ char raw[];
  const uint32_t z_at = (shared_address(raw) + 1023) & ~1023u;
  Ring ring(z_at + R * 2 * TOKENS, SLOTS, SLOT);
  const uint32_t z_full = ring.end(), z_empty = z_full + 8;
  const int group = threadIdx.x / 128, rank = cluster_rank();
  if (threadIdx.x == 0) {
    ring.init();
    bar_init(z_full, 1);
    bar_init(z_empty, 2);
    bars_are_made();
  }
  cluster_sync();
  const int sets = (tokens + CLUSTER * TOKENS - 1) / (CLUSTER * TOKENS), stride = gridDim.x / CLUSTER;
  if (group == 0) {
    fewer_registers<R == 128 ? FEW : 24>();
    if (threadIdx.x == 0) {
      int z_phase = 1;
      auto load_up = [&](int block) {
#pragma unroll 1
        for (int k = 0; k < 2; ++k) {
          const uint32_t bar = ring.reserve();
#pragma unroll 1
          for (int i = 0; i < PARTS; ++i)
            load_groups_both(ring.slot() + i * BOX + rank * (BOX / 2), &up_map, (k * PARTS + i) * 64,
                             block * 8 + rank * 4, bar);
          ring.advance();
        }
      };
      for (int set = blockIdx.x / CLUSTER; set < sets; set += stride) {
        bar_wait(z_empty, z_phase);
        z_phase ^= 1;
        bar_expect(z_full, R * 2 * TOKENS);
#pragma unroll 1
        for (int k = 0; k < R / 64; ++k) load(z_at + k * BOX, &z_map, k * 64, (set * CLUSTER + rank) * TOKENS, z_full);
        load_up(0);
        for (int block = 0; block < feature_blocks; ++block) {
#pragma unroll 1
          for (int k = 0; k < 2; ++k) {
            const uint32_t bar = ring.reserve();
            load_both(ring.slot() + rank * (SLOT / 2), &down_map, block * 128 + k * 64, rank * (R / 2), bar);
            ring.advance();
          }
          if (block + 1 < feature_blocks) load_up(block + 1);
        }
      }
    }
  } else {
    more_registers<R == 128 ? MANY : 240>();
    const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, half = group - 1, q = lane & 3;
    const bool odd = lane & 1;
    int z_phase = 0;
    float x[64], d[R / 2];
    auto pre_activations = [&]() {
      uint32_t z = z_at + half * (BOX / 2);
      asm volatile("" : "+r"(z));  // else all its descriptors are kept in registers that are not there
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        ring.await();
        fence();
#pragma unroll
        for (int i = 0; i < PARTS; ++i) {
          const uint64_t a = operand(z + (k * PARTS + i) * BOX), b = operand(ring.slot() + i * BOX);
#pragma unroll
          for (int j = 0; j < 4; ++j) dense_128(x, a + 2 * j, b + 2 * j, k > 0 || i > 0 || j > 0);
        }
        ring.advance();
      }
      commit();
    };
    auto release_two = [&]() {
      ring.release(thread);
      ring.release(thread);
    };
    for (int set = blockIdx.x / CLUSTER; set < sets; set += stride) {
      bar_wait(z_full, z_phase);
      z_phase ^= 1;
      pre_activations();
      wait<0>();
      settle(x);
      release_two();
#pragma unroll
      for (int i = 0; i < R / 2; ++i) d[i] = 0;
      settle(d);
      for (int block = 0; block < feature_blocks; ++block) {
        uint32_t a[2][2][4], codes[2][2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
#pragma unroll
          for (int w = 0; w < 2; ++w) {
            const Packed first = pack(x + 32 * k + 16 * w, q), second = pack(x + 32 * k + 16 * w + 8, q);
            a[k][w][0] = first.upper;
            a[k][w][1] = first.lower;
            a[k][w][2] = second.upper;
            a[k][w][3] = second.lower;
            codes[k][w] = gather_codes(first.code, second.code, odd);
          }
          ring.await();
          const uint64_t b = operand(ring.slot());
          fence();
          sparse<R>(d, a[k][0], b, codes[k][0]);
          sparse<R>(d, a[k][1], b + 4, codes[k][1]);
          commit();
          ring.advance();
        }
        if (block + 1 < feature_blocks) {
          pre_activations();
          wait<1>();
          release_two();
        }
        wait<0>();
        settle(x);
        release_two();
        if (thread == 0 && (block + 2 == feature_blocks || feature_blocks == 1)) bar_arrive(z_empty);
      }
      settle(d);
      const int row = (set * CLUSTER + rank) * TOKENS + half * 64 + warp * 16 + lane / 4;
#pragma unroll
      for (int j = 0; j < R / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (row + 8 * i < tokens)
            out[((size_t)(row + 8 * i) * R + 8 * j) / 2 + q] = rounded(d[4 * j + 2 * i], d[4 * j + 2 * i + 1]);
    }
  }
  cluster_sync();  // nobody leaves while the other may still write here
}
