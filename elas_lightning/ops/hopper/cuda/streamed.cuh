// For ranks whose tokens do not stay in shared memory: tiles of 128 tokens and 256 features, both streaming by, 64
// numbers of the rank a slot. Programs stay and take tile after tile, eight clusters of tokens for each column of
// features, so that what is loaded is still in the L2 cache.

constexpr int SLOTS = 4;
constexpr int FEATURES = 256;
constexpr int SLOT = BOX + FEATURES * ROW;

struct Tiles {
  int pairs, feature_blocks, rank;
  int token_block, feature_block;
  __device__ __forceinline__ Tiles(int token_blocks, int feature_blocks, int rank)
      : pairs((token_blocks + 1) / CLUSTER), feature_blocks(feature_blocks), rank(rank) {}
  __device__ __forceinline__ int count() const { return pairs * feature_blocks; }
  __device__ __forceinline__ void choose(int tile) {
    const int together = 8, group = together * feature_blocks, first = tile / group * together;
    const int size = min(pairs - first, together);
    token_block = CLUSTER * (first + tile % group % size) + rank;
    feature_block = tile % group / size;
  }
};

__device__ __forceinline__ void load_step(Ring& ring, const TensorMap* rows, const TensorMap* features,
                                          const Tiles& tiles, int column) {
  const uint32_t bar = ring.reserve();
  load(ring.slot(), rows, column, tiles.token_block * TOKENS, bar);
  load_groups_both(ring.slot() + BOX * (1 + tiles.rank), features, column,
                   tiles.feature_block * 16 + tiles.rank * 8, bar);
  ring.advance();
}

// d = the 64 tokens of a warp group times 256 features, ``depth`` slots long.
__device__ __forceinline__ void multiply(float (&d)[128], Ring& ring, int depth, int half, int thread) {
  for (int k = 0; k < depth; ++k) {
    ring.await();
    const uint64_t a = operand(ring.slot() + half * (BOX / 2)), b = operand(ring.slot() + BOX);
    fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) dense_256(d, a + 2 * j, b + 2 * j, k > 0 || j > 0);
    commit();
    ring.advance();
    if (k > 0) {
      wait<1>();
      ring.release(thread);
    }
  }
  wait<0>();
  settle(d);
  ring.release(thread);
}
