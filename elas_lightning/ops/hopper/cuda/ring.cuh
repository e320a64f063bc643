// What the kernels share: the shape of their programs, and the ring through which tiles reach those who multiply.
//
// Every kernel runs in clusters of two programs that hold neighbouring tokens. Each loads half of every tile of
// weights and sends it to both, which halves what comes out of the L2 cache. One warp group loads, two compute.

constexpr int CLUSTER = 2;
constexpr int TOKENS = 128;  // of a program: 64 for each computing warp group
constexpr int THREADS = 384;
constexpr int ROW = 128;          // bytes: 64 numbers, the width of the swizzle
constexpr int BOX = TOKENS * ROW;  // 128 rows of them

// Registers of a thread: together what 384 threads get at the launch, 168 each.
constexpr int FEW = 40, MANY = 232;

// An operand of rows of 128 bytes with 128-byte swizzle, eight rows a kilobyte; 16 numbers further is 2 more.
__device__ __forceinline__ uint64_t operand(uint32_t address) {
  return (uint64_t)((address & 0x3FFFF) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}

// A ring of slots in shared memory, filled by bulk copies and emptied by the warp groups of both programs.
struct Ring {
  uint32_t slots, full, empty;
  int count, bytes;
  int at = 0, phase = 0, freed = 0;

  __device__ __forceinline__ Ring(uint32_t base, int count, int bytes)
      : slots(base), full(base + count * bytes), empty(full + 8 * count), count(count), bytes(bytes) {}
  __device__ __forceinline__ uint32_t end() const { return empty + 8 * count; }
  __device__ __forceinline__ void init() const {
    for (int s = 0; s < count; ++s) {
      bar_init(full + 8 * s, 1);
      bar_init(empty + 8 * s, 2 * CLUSTER);
    }
  }
  __device__ __forceinline__ uint32_t slot() const { return slots + at * bytes; }
  __device__ __forceinline__ void advance() {
    if (++at == count) {
      at = 0;
      phase ^= 1;
    }
  }
  // the loading side: wait until the slot is free in both programs, and say what will come
  __device__ __forceinline__ uint32_t reserve() const {
    bar_wait(empty + 8 * at, phase ^ 1);
    bar_expect(full + 8 * at, bytes);
    return full + 8 * at;
  }
  // the computing side
  __device__ __forceinline__ void await() const { bar_wait(full + 8 * at, phase); }
  __device__ __forceinline__ void release(int thread) {
    if (thread < CLUSTER) bar_arrive_at(empty + 8 * freed, thread);
    if (++freed == count) freed = 0;
  }
};
