// A multiprocessor of compute capability 9.0 for the kernels in elas_lightning/ops/hopper/cuda, on a CPU: what
// instructions.cuh asks of the machine, by its definition (PTX ISA 8.0), and threads that take turns.
//
// What runs while a thread goes on, copies and products, has two extremes, and a kernel must be right at both: it
// happens at once, or not before somebody has to wait for it. Copies that are early overwrite a slot that was
// released too soon; products that are late find it overwritten, and accumulators that nobody waited for unchanged.

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <map>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)

inline int min(int a, int b) { return b < a ? b : a; }

struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
template <class T> T __ldg(const T* p) { return *p; }
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selection) {
  const uint64_t bytes = (uint64_t)high << 32 | low;
  uint32_t found = 0;
  for (int i = 0; i < 4; ++i) found |= (uint32_t)(bytes >> 8 * (selection >> 4 * i & 7) & 0xFF) << 8 * i;
  return found;
}

struct Index {
  unsigned x;
} threadIdx, blockIdx, gridDim;

// What the stand-in for the driver (emulation.py) writes where the driver would have written its own.
struct alignas(64) TensorMap {
  const char* data;
  uint64_t rank, sizes[5], strides[4];  // strides in bytes, from the second dimension on
  uint32_t box[5];
};
static_assert(sizeof(TensorMap) == 128);

// ---------------------------------------------------------------------------------------------- numbers of 16 bits

#if FP16
#define INFINITE 0x7C007C00u
constexpr uint16_t NOT_A_NUMBER = 0x7FFF;
inline float widened(uint16_t x) {
  _Float16 h;
  memcpy(&h, &x, 2);
  return (float)h;
}
inline uint16_t narrowed(float x) {
  if (x != x) return NOT_A_NUMBER;
  const _Float16 h = (_Float16)x;
  uint16_t bits;
  memcpy(&bits, &h, 2);
  return bits;
}
#else
#define INFINITE 0x7F807F80u
constexpr uint16_t NOT_A_NUMBER = 0x7FFF;
inline float widened(uint16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
inline uint16_t narrowed(float x) {
  if (x != x) return NOT_A_NUMBER;
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
#endif
inline uint32_t rounded(float low, float high) { return narrowed(low) | (uint32_t)narrowed(high) << 16; }
inline uint32_t relu(float low, float high) { return rounded(low < 0 ? 0 : low, high < 0 ? 0 : high); }
template <class F> uint32_t halves(uint32_t a, uint32_t b, F f) {
  return f((uint16_t)a, (uint16_t)b) | (uint32_t)f((uint16_t)(a >> 16), (uint16_t)(b >> 16)) << 16;
}
inline uint32_t times(uint32_t a, uint32_t b) {
  return halves(a, b, [](uint16_t x, uint16_t y) { return narrowed(widened(x) * widened(y)); });
}
inline uint32_t plus(uint32_t a, uint32_t b) {
  return halves(a, b, [](uint16_t x, uint16_t y) { return narrowed(widened(x) + widened(y)); });
}
inline uint32_t least(uint32_t a, uint32_t b) {
  return halves(a, b, [](uint16_t x, uint16_t y) {
    const float p = widened(x), q = widened(y);
    if (p != p) return q != q ? NOT_A_NUMBER : y;
    return q < p ? y : x;
  });
}
inline uint32_t at_least(uint32_t a, uint32_t b) {
  return halves(a, b, [](uint16_t x, uint16_t y) { return (uint16_t)(widened(x) >= widened(y) ? 0xFFFF : 0); });
}

// -------------------------------------------------------------------------------------------- threads taking turns

char raw[1];  // the kernels' shared memory, whose address alone they ask for

namespace machine {

constexpr int PROGRAMS = 2, GROUP = 128, WARP = 32;
constexpr uint32_t FIRST_BYTE = 16;  // of shared memory: it is not aligned as the kernels want it
constexpr size_t STACK = 128 * 1024;

struct Barrier {
  int count, pending, parity = 0;
  int64_t bytes = 0;  // announced and not there yet
};

// A product of a warp group, as each of its threads has asked for it.
struct Product {
  uint64_t a = 0, b = 0;
  bool adds = true, is_sparse = false;
  int width = 0, asked = 0;
  float* d[GROUP];
  const uint32_t* registers[GROUP];
  uint32_t codes[GROUP];
};

struct Group {
  std::vector<Product> products;  // those that are not done
  int64_t done = 0;
};

struct Warp {
  uint32_t given[WARP], taken[WARP];
  int arrived = 0, turn = 0;
};

struct Program {
  std::vector<char> shared;
  std::map<uint32_t, Barrier> barriers;
  std::vector<Group> groups;
  std::vector<Warp> warps;
};

struct Thread {
  ucontext_t context;
  int program, index;
  bool done = false;
  bool (*ready)(const void*) = nullptr;  // what it waits for, and in whose words
  const void* asks = nullptr;
  const char* waits_for = "";
  int64_t asked = 0;                // products
  std::vector<int64_t> committed;  // how many of them each commit ends
  bool fenced = false;
};

struct Copy {
  int program;
  TensorMap map;
  uint32_t to, bar;
  int at[5];
};

struct Machine {
  Program programs[PROGRAMS];
  std::vector<Thread> threads;
  std::vector<Copy> copies;
  Thread* running = nullptr;
  ucontext_t scheduler;
  bool copies_late = false, products_late = false;
  uint32_t shared_bytes = 0;
  int synced = 0, syncs = 0;
  char fault[400] = "";
};
inline Machine* now;

inline Program& mine() { return now->programs[now->running->program]; }
inline void yield() { swapcontext(&now->running->context, &now->scheduler); }
struct Fault {};
// The first fault ends the launch: a thread that finds it never goes on.
template <class... A> [[noreturn]] void fail(const char* text, A... values) {
  snprintf(now->fault, sizeof now->fault, text, values...);
  while (now->running) yield();
  throw Fault();
}
template <class F> void until(const char* what, F ready) {
  if (ready()) return;
  Thread& thread = *now->running;
  thread.ready = [](const void* asks) { return (*(const F*)asks)(); };
  thread.asks = &ready;
  thread.waits_for = what;
  yield();
  thread.ready = nullptr;
}

// ------------------------------------------------------------------------------------------------- shared memory

inline void check_shared(uint32_t from, uint32_t bytes, const char* what) {
  if (from < FIRST_BYTE || from + bytes > FIRST_BYTE + now->shared_bytes)
    fail("%s at %u to %u, outside the %u bytes of shared memory", what, from, from + bytes, now->shared_bytes);
}
inline Barrier& barrier(int program, uint32_t at) {
  auto found = now->programs[program].barriers.find(at);
  if (found == now->programs[program].barriers.end()) fail("there is no barrier at %u", at);
  return found->second;
}
inline void look(Barrier& bar) {
  if (bar.pending || bar.bytes) return;
  bar.parity ^= 1;
  bar.pending = bar.count;
}
inline void arrive(int program, uint32_t at) {
  Barrier& bar = barrier(program, at);
  if (!bar.pending--) fail("one arrival too many at the barrier at %u", at);
  look(bar);
}

inline void perform(const Copy& copy) {
  const TensorMap& map = copy.map;
  char* shared = now->programs[copy.program].shared.data();
  uint32_t rows = 1;
  for (uint64_t i = 1; i < map.rank; ++i) rows *= map.box[i];
  const uint32_t bytes = rows * 128;
  check_shared(copy.to, bytes, "a copy");
  if (copy.to % 1024) fail("a copy to %u: the swizzle repeats every kilobyte", copy.to);
  for (auto& [at, bar] : now->programs[copy.program].barriers)
    if (at + 8 > copy.to && at < copy.to + bytes) fail("a copy to %u over the barrier at %u", copy.to, at);
  for (uint32_t row = 0; row < rows; ++row) {
    const char* from = map.data;
    bool inside = true;
    for (uint32_t i = 1, rest = row; i < map.rank; ++i) {
      const int64_t at = copy.at[i] + rest % map.box[i];
      rest /= map.box[i];
      inside &= at >= 0 && (uint64_t)at < map.sizes[i];
      from += at * map.strides[i - 1];
    }
    for (int i = 0; i < 64; ++i) {
      const int64_t column = copy.at[0] + i;
      uint32_t to = copy.to + row * 128 + 2 * i;
      to ^= (to >> 7 & 7) << 4;
      if (inside && column >= 0 && (uint64_t)column < map.sizes[0]) memcpy(shared + to, from + 2 * column, 2);
      else memset(shared + to, 0, 2);
    }
  }
  Barrier& bar = barrier(copy.program, copy.bar);
  bar.bytes -= bytes;
  look(bar);
}
inline void copy(int program, uint32_t to, const TensorMap* map, std::initializer_list<int> at, uint32_t bar) {
  if (map->rank != at.size() || map->box[0] != 64) fail("a copy of %zu dimensions by another map", at.size());
  Copy made = {program, *map, to, bar, {}};
  memcpy(made.at, at.begin(), at.size() * sizeof(int));
  if (now->copies_late) now->copies.push_back(made);
  else perform(made);
}

// ------------------------------------------------------------------------------------------------------- products

// Sixteen-bit number ``k`` of row ``row`` of an operand (the descriptor of wgmma, 128-byte swizzle).
inline float of_operand(const char* shared, uint64_t operand, int row, int k) {
  uint32_t at = (uint32_t)(operand & 0x3FFF) * 16 + row / 8 * (uint32_t)((operand >> 32 & 0x3FFF) * 16) + row % 8 * 128;
  at += 2 * k;
  at ^= (at >> 7 & 7) << 4;
  uint16_t bits;
  memcpy(&bits, shared + at, 2);
  return widened(bits);
}
inline void check_operand(uint64_t operand, int rows) {
  const uint32_t first = (uint32_t)(operand & 0x3FFF) * 16;
  if (operand >> 62 != 1) fail("an operand whose swizzle is not of 128 bytes");
  if (first & 0x380) fail("an operand at %u: not where the swizzle begins", first);
  check_shared(first & ~127u, rows * 128, "an operand");
}
inline void perform(const Product& product, const char* shared) {
  const int depth = product.is_sparse ? 32 : 16, width = product.width;
  check_operand(product.b, width);
  if (!product.is_sparse) check_operand(product.a, 64);
  std::vector<float> a(64 * depth), b(width * depth);
  for (int n = 0; n < width; ++n)
    for (int k = 0; k < depth; ++k) b[n * depth + k] = of_operand(shared, product.b, n, k);
  if (product.is_sparse) {
    for (int thread = 0; thread < GROUP; ++thread)
      for (int i = 0; i < 4; ++i) {
        const int q = thread % 4, row = thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8, group = q + i / 2 * 4;
        // two of four threads have the codes, four groups each
        const uint32_t codes = product.codes[thread - q + group / 4] >> (i % 2 * 16 + group % 4 * 4);
        const int first = codes & 3, second = codes >> 2 & 3;
        if (first >= second) fail("codes %d and %d of a group", first, second);
        a[row * depth + 4 * group + first] = widened((uint16_t)product.registers[thread][i]);
        a[row * depth + 4 * group + second] = widened((uint16_t)(product.registers[thread][i] >> 16));
      }
  } else {
    for (int m = 0; m < 64; ++m)
      for (int k = 0; k < depth; ++k) a[m * depth + k] = of_operand(shared, product.a, m, k);
  }
  for (int thread = 0; thread < GROUP; ++thread)
    for (int i = 0; i < width / 2; ++i) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      float sum = product.adds ? product.d[thread][i] : 0;
      for (int k = 0; k < depth; ++k) sum += a[row * depth + k] * b[column * depth + k];
      product.d[thread][i] = sum;
    }
}
inline Group& group() { return mine().groups[now->running->index / GROUP]; }
inline void finish(Program& program, Group& group, int64_t products) {
  while (group.done < products) {
    perform(group.products.front(), program.shared.data());
    group.products.erase(group.products.begin());
    ++group.done;
  }
}
inline void ask(bool is_sparse, int width, float* d, uint64_t a, const uint32_t* registers, uint64_t b, uint32_t codes,
                bool adds) {
  Thread& thread = *now->running;
  Group& group = machine::group();
  if (!thread.fenced) fail("a product without a fence before it");
  const size_t at = thread.asked++ - group.done;
  if (at == group.products.size()) group.products.push_back({a, b, adds, is_sparse, width});
  Product& product = group.products[at];
  if (product.a != a || product.b != b || product.adds != adds || product.width != width ||
      product.is_sparse != is_sparse)
    fail("the threads of a warp group ask for different products");
  const int i = thread.index % GROUP;
  product.d[i] = d;
  product.registers[i] = registers;
  product.codes[i] = codes;
  if (++product.asked == GROUP && !now->products_late) finish(mine(), group, group.done + 1);
}

}  // namespace machine

// -------------------------------------------------------------------------- what instructions.cuh is on a device

inline uint32_t shared_address(const void*) { return machine::FIRST_BYTE; }
inline int cluster_rank() { return machine::now->running->program; }
inline void cluster_sync() {
  machine::Machine& all = *machine::now;
  const int turn = all.syncs;
  if (++all.synced == (int)all.threads.size()) {
    all.synced = 0;
    ++all.syncs;
  }
  machine::until("the cluster", [&all, turn] { return all.syncs != turn; });
}
template <int N> void more_registers() {}
template <int N> void fewer_registers() {}

inline void bar_init(uint32_t bar, int count) {
  machine::check_shared(bar, 8, "a barrier");
  if (!machine::mine().barriers.insert({bar, {count, count}}).second) machine::fail("a second barrier at %u", bar);
}
inline void bars_are_made() {}
inline void bar_expect(uint32_t bar, int bytes) {
  machine::barrier(machine::now->running->program, bar).bytes += bytes;
  machine::arrive(machine::now->running->program, bar);
}
inline void bar_arrive(uint32_t bar) { machine::arrive(machine::now->running->program, bar); }
inline void bar_arrive_at(uint32_t bar, int rank) { machine::arrive(rank, bar); }
inline void bar_wait(uint32_t bar, int parity) {
  const machine::Barrier& waited = machine::barrier(machine::now->running->program, bar);
  machine::until("a barrier", [&waited, parity] { return waited.parity != parity; });
}

inline void load(uint32_t to, const TensorMap* map, int column, int row, uint32_t bar) {
  machine::copy(cluster_rank(), to, map, {column, row}, bar);
}
inline void load_both(uint32_t to, const TensorMap* map, int column, int row, uint32_t bar) {
  for (int program = 0; program < machine::PROGRAMS; ++program) machine::copy(program, to, map, {column, row}, bar);
}
inline void load_groups_both(uint32_t to, const TensorMap* map, int column, int sixteen, uint32_t bar) {
  for (int program = 0; program < machine::PROGRAMS; ++program)
    machine::copy(program, to, map, {column, 0, 0, 0, sixteen}, bar);
}

inline void fence() { machine::now->running->fenced = true; }
inline void commit() {
  machine::now->running->committed.push_back(machine::now->running->asked);
  machine::now->running->fenced = false;
}
template <int N> void wait() {
  machine::Thread& thread = *machine::now->running;
  if ((int)thread.committed.size() <= N) return;
  const int64_t last = thread.committed[thread.committed.size() - 1 - N];
  machine::Group& group = machine::group();
  machine::until("the threads of its warp group", [&group, last] {
    return group.done >= last || (last - group.done <= (int64_t)group.products.size() &&
                                  group.products[last - 1 - group.done].asked == machine::GROUP);
  });
  machine::finish(machine::mine(), group, last);
}
// Accumulators are read from here on: nothing may be under way that writes them.
template <int N> void settle(float (&d)[N]) {
  const int i = machine::now->running->index % machine::GROUP;
  const machine::Group& group = machine::group();
  for (int64_t at = group.done; at < machine::now->running->asked; ++at)
    if (group.products[at - group.done].d[i] == d) machine::fail("accumulators are read before they are complete");
}
inline void dense_128(float (&d)[64], uint64_t a, uint64_t b, int adds) {
  machine::ask(false, 128, d, a, nullptr, b, 0, adds);
}
inline void dense_256(float (&d)[128], uint64_t a, uint64_t b, int adds) {
  machine::ask(false, 256, d, a, nullptr, b, 0, adds);
}
template <int N> void sparse(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, uint32_t codes) {
  machine::ask(true, N, d, 0, a, b, codes, true);
}
inline uint32_t __shfl_xor_sync(uint32_t, uint32_t value, int mask) {
  const int lane = machine::now->running->index % machine::WARP;
  machine::Warp& warp = machine::mine().warps[machine::now->running->index / machine::WARP];
  const int turn = warp.turn;
  warp.given[lane] = value;
  if (++warp.arrived == machine::WARP) {
    memcpy(warp.taken, warp.given, sizeof warp.given);
    warp.arrived = 0;
    ++warp.turn;
  }
  machine::until("the lanes of its warp", [&warp, turn] { return warp.turn != turn; });
  return warp.taken[lane ^ mask];
}

// --------------------------------------------------------------------------------------------------------- launch

extern "C" void kernel_of_a_thread();

namespace machine {

inline void enter() {
  kernel_of_a_thread();
  now->running->done = true;
  yield();
}

[[noreturn]] inline void tell_who_waits(const Machine& all) {
  std::map<const char*, int> waiting;
  for (const Thread& thread : all.threads)
    if (!thread.done) ++waiting[thread.waits_for];
  char list[300] = "";
  for (const auto& [what, threads] : waiting)
    snprintf(list + strlen(list), sizeof list - strlen(list), ", %d threads wait for %s", threads, what);
  fail("nobody goes on%s", list);
}

// A cluster from its start to its end.
inline void run_cluster(Machine& all, char* stacks, int threads, bool backwards) {
  const int count = PROGRAMS * threads, first = blockIdx.x;
  all.threads = std::vector<Thread>(count);
  for (Program& program : all.programs) {
    program.shared.assign(FIRST_BYTE + all.shared_bytes, (char)0xFF);  // NaN to whoever reads what nobody wrote
    program.barriers.clear();
    program.groups = std::vector<Group>(threads / GROUP);
    program.warps = std::vector<Warp>(threads / WARP);
  }
  for (int i = 0; i < count; ++i) {
    Thread& thread = all.threads[i];
    thread.program = i / threads;
    thread.index = i % threads;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = stacks + i * STACK;
    thread.context.uc_stack.ss_size = STACK;
    makecontext(&thread.context, enter, 0);
  }
  for (int left = count; left;) {
    bool went_on = false;
    for (int i = 0; i < count; ++i) {
      Thread& thread = all.threads[backwards ? count - 1 - i : i];
      if (thread.done || (thread.ready && !thread.ready(thread.asks))) continue;
      went_on = true;
      threadIdx.x = thread.index;
      blockIdx.x = first + thread.program;
      all.running = &thread;
      swapcontext(&all.scheduler, &thread.context);
      all.running = nullptr;
      if (*all.fault) throw Fault();
      left -= thread.done;
    }
    if (went_on) continue;
    if (all.copies.empty()) tell_who_waits(all);
    const Copy last = all.copies.back();  // there is no order among copies: that of their asking is the kindest
    all.copies.pop_back();
    perform(last);
  }
  if (!all.copies.empty()) fail("%zu copies nobody has waited for", all.copies.size());
  for (const Program& program : all.programs) {
    for (const Group& group : program.groups)
      if (!group.products.empty()) fail("%zu products nobody has waited for", group.products.size());
    for (const auto& [at, bar] : program.barriers)
      if (bar.bytes) fail("%lld bytes nobody expected at the barrier at %u", -(long long)bar.bytes, at);
  }
  blockIdx.x = first;
}

}  // namespace machine

// The kernel follows this file, and calls itself by ``call_kernel`` (emulation.py).
inline void** kernel_arguments;
template <class... A, size_t... I>
void call_kernel(void (*kernel)(A...), std::index_sequence<I...>) {
  kernel(*(A*)kernel_arguments[I]...);
}
template <class... A> void call_kernel(void (*kernel)(A...)) { call_kernel(kernel, std::index_sequence_for<A...>{}); }

// Empty, or what went wrong.
extern "C" const char* launch(int programs, int threads, int shared_bytes, void** arguments, bool copies_late,
                              bool products_late) {
  static machine::Machine all;
  all = {};
  machine::now = &all;
  char* stacks = (char*)malloc(machine::PROGRAMS * threads * machine::STACK);
  all.shared_bytes = shared_bytes;
  all.copies_late = copies_late;
  all.products_late = products_late;
  kernel_arguments = arguments;
  gridDim.x = programs;
  try {
    for (blockIdx.x = 0; blockIdx.x < (unsigned)programs; blockIdx.x += machine::PROGRAMS)
      machine::run_cluster(all, stacks, threads, products_late);
  } catch (machine::Fault) {
  }
  free(stacks);
  return all.fault;
}
