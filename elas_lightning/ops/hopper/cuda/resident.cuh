// What the kernels share whose tokens stay in shared memory while features stream by, 128 features and 64 numbers of
// the rank a slot.

constexpr int K = R / 64;
constexpr int STAY = R * 2 * TOKENS;  // bytes: a program's rows

__device__ __forceinline__ constexpr int slots_beside(int stays, int most) {
  return (224 * 1024 - stays) / BOX < most ? (224 * 1024 - stays) / BOX : most;
}

// A cluster has two blocks of tokens and one part of the features, so that few tokens fill a GPU, too.
struct Part {
  int token_block, begin, end;
  __device__ __forceinline__ Part(int feature_blocks, int parts, int rank) {
    const int cluster = blockIdx.x / CLUSTER, part = cluster % parts;
    token_block = cluster / parts * CLUSTER + rank;
    begin = feature_blocks * part / parts;
    end = feature_blocks * (part + 1) / parts;
  }
};

// The loading side.
__device__ __forceinline__ void load_rows(uint32_t to, const TensorMap* map, int token_block, uint32_t bar) {
  for (int k = 0; k < K; ++k) load(to + k * BOX, map, k * 64, token_block * TOKENS, bar);
}
__device__ __forceinline__ void load_features(Ring& ring, const TensorMap* map, int k, int block, int rank) {
  const uint32_t bar = ring.reserve();
  load_groups_both(ring.slot() + rank * (BOX / 2), map, k * 64, block * 8 + rank * 4, bar);
  ring.advance();
}

// The computing side: products of 64 rows that stay, of which one is under way when ``step`` returns, and all before
// it are complete.
struct Products {
  Ring& ring;
  int half, thread;
  bool first = true;

  __device__ __forceinline__ void step(float (&d)[64], uint32_t rows, int k) {
    ring.await();
    const uint64_t a = operand(rows + k * BOX + half * (BOX / 2)), b = operand(ring.slot());
    fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) dense_128(d, a + 2 * j, b + 2 * j, k > 0 || j > 0);
    commit();
    ring.advance();
    wait<1>();
    if (!first) ring.release(thread);
    first = false;
  }
};

__device__ __forceinline__ void start(const Ring& ring, uint32_t rows_full) {
  if (threadIdx.x == 0) {
    ring.init();
    bar_init(rows_full, 1);
    bars_are_made();
  }
  cluster_sync();
}

// All tiles of a part, in two sets of accumulators by turns: while the products of one run, ``piece`` finishes the
// one before, sixteen features at a time. It is told the accumulators to finish, which sixteen, the tile whose products
// run, and whether there is anything to finish and any product that runs: not at both ends.
template <class Piece>
__device__ __forceinline__ void by_turns(float (&d)[2][64], Products& products, uint32_t rows, const Part& part,
                                         Piece piece) {
  auto tile = [&](float (&y)[64], float (&o)[64], int block, bool multiplies, bool finishes) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (multiplies) {
        products.step(y, rows, k);
      } else if (k == 0) {
        wait<0>();
      }
      if (finishes && k == 0) settle(o);
#pragma unroll
      for (int i = 8 * k / K; i < 8 * (k + 1) / K; ++i) piece(o, i, block, multiplies, finishes);
    }
  };
  tile(d[0], d[1], part.begin, true, false);
  int block = part.begin + 1;
  for (; block + 1 < part.end; block += 2) {
    tile(d[1], d[0], block, true, true);
    tile(d[0], d[1], block + 1, true, true);
  }
  if (block < part.end) {
    tile(d[1], d[0], block, true, true);
    tile(d[0], d[1], block + 1, false, true);
  } else {
    tile(d[1], d[0], block, false, true);
  }
}
