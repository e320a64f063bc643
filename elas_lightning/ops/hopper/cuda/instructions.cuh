// Every instruction of the machine that these kernels name themselves: barriers in shared memory, the bulk copies that
// complete on them, the matrix instructions of a warp group, and arithmetic on the halves of a 32-bit word. PTX ISA 8.0
// and later; compute capability 9.0 alone ("sm_90a"). The products, whose registers are named one by one, are written by
// compiler.py.

typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;

struct alignas(64) TensorMap {
  char bytes[128];
};

#if FP16
#define T16 "f16"
#define INFINITE 0x7C007C00u
#else
#define T16 "bf16"
#define INFINITE 0x7F807F80u
#endif
#define P16 T16 "x2"

__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
template <int N> __device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

__device__ __forceinline__ void bar_init(uint32_t bar, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}
__device__ __forceinline__ void bars_are_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void bar_expect(uint32_t bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void bar_arrive(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
// The default scope: a release to the whole cluster would wait for every load and store under way, and cost more than
// clusters gain. What the other program may overwrite has been read by matrix instructions, which are complete.
__device__ __forceinline__ void bar_arrive_at(uint32_t bar, int rank) {
  asm volatile(
      "{\n.reg .b32 r;\nmapa.shared::cluster.u32 r, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [r];\n}\n"
      ::"r"(bar), "r"(rank) : "memory");
}
__device__ __forceinline__ void bar_wait(uint32_t bar, int parity) {
  asm volatile(
      "{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\n"
      "DONE:\n}\n" ::"r"(bar),
      "r"(parity)
      : "memory");
}

// A box of rows of 64 numbers; "both" sends it to the same place in both programs.
__device__ __forceinline__ void load(uint32_t to, const TensorMap* map, int column, int row, uint32_t bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
      ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(bar) : "memory");
}
__device__ __forceinline__ void load_both(uint32_t to, const TensorMap* map, int column, int row, uint32_t bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(bar), "h"((short)3)
      : "memory");
}
// Rows of features, sixteen by sixteen, in the order of ``group_map`` (ffn.py): a product's tile then has the four
// members of a group in one thread.
__device__ __forceinline__ void load_groups_both(uint32_t to, const TensorMap* map, int column, int sixteen,
                                                 uint32_t bar) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3, %3, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(column), "r"(0), "r"(sixteen), "r"(bar), "h"((short)3)
      : "memory");
}

__device__ __forceinline__ void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// The compiler must not read accumulators before it has waited for them.
template <int N> __device__ __forceinline__ void settle(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Two numbers of 16 bits at once.
#define BINARY(name, instruction)                                        \
  __device__ __forceinline__ uint32_t name(uint32_t a, uint32_t b) {     \
    uint32_t c;                                                          \
    asm(instruction " %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));          \
    return c;                                                            \
  }
BINARY(times, "mul.rn." P16)
BINARY(plus, "add.rn." P16)
BINARY(least, "min." P16)
BINARY(at_least, "set.ge.u32." P16)

__device__ __forceinline__ uint32_t rounded(float low, float high) {
  uint32_t x;
  asm("cvt.rn." P16 ".f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
  return x;
}
// volatile: not to be put off until the accumulators are written again
__device__ __forceinline__ uint32_t relu(float low, float high) {
  uint32_t x;
  asm volatile("cvt.rn.relu." P16 ".f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
  return x;
}
