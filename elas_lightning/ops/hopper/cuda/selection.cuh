// Squared ReLU and the choice of two of four, for two rows of tokens at once: the halves of a 32-bit word.

// Where member m of a thread's group of four stands among the eight accumulators of sixteen features; two further is
// the same feature of the row eight below.
__device__ __forceinline__ constexpr int place(int m) { return 4 * (m / 2) + m % 2; }

__device__ __forceinline__ void relus(const float* x, uint32_t (&r)[4]) {
#pragma unroll
  for (int m = 0; m < 4; ++m) r[m] = relu(x[place(m)], x[place(m) + 2]);
}

struct Kept {
  uint32_t a, b, c, d;
};
// Who is among the two largest: who is beaten by at most one. The earlier wins a tie; NaN counts as infinity.
__device__ __forceinline__ Kept two_of(const uint32_t (&h)[4]) {
  const uint32_t a = least(h[0], INFINITE), b = least(h[1], INFINITE);
  const uint32_t c = least(h[2], INFINITE), d = least(h[3], INFINITE);
  const uint32_t ab = at_least(a, b), ac = at_least(a, c), ad = at_least(a, d);
  const uint32_t bc = at_least(b, c), bd = at_least(b, d), cd = at_least(c, d);
  return {(ab & ac) | (ab & ad) | (ac & ad), (~ab & bc) | (~ab & bd) | (bc & bd),
          (~ac & ~bc) | (~ac & cd) | (~bc & cd), (~ad & ~bd) | (~ad & ~cd) | (~bd & ~cd)};
}

// One group of a thread, packed: two values for each of the two rows, and their codes where thread q of four has them.
struct Packed {
  uint32_t upper, lower, code;
};
__device__ __forceinline__ Packed pack(const uint32_t (&r)[4], int q) {
  uint32_t h[4];
#pragma unroll
  for (int m = 0; m < 4; ++m) h[m] = times(r[m], r[m]);
  const Kept k = two_of(h);
  const uint32_t first = (h[0] & k.a) | (~k.a & ((h[1] & k.b) | (~k.b & h[2])));
  const uint32_t second = (h[3] & k.d) | (~k.d & ((h[2] & k.c) | (~k.c & h[1])));
  const uint32_t code = (~k.a & k.b & 0x00010001u) | (~k.a & ~k.b & 0x00020002u) | ((k.d | ~k.c) & 0x00040004u) |
                        ((k.d | k.c) & 0x00080008u);
  return {__byte_perm(first, second, 0x5410), __byte_perm(first, second, 0x7632), code << 4 * q};
}
__device__ __forceinline__ Packed pack(const float* x, int q) {
  uint32_t r[4];
  relus(x, r);
  return pack(r, q);
}
// Four features of two rows, as row-major memory has them, and back.
__device__ __forceinline__ uint2 upper_row(const uint32_t (&x)[4]) {
  return make_uint2(__byte_perm(x[0], x[1], 0x5410), __byte_perm(x[2], x[3], 0x5410));
}
__device__ __forceinline__ uint2 lower_row(const uint32_t (&x)[4]) {
  return make_uint2(__byte_perm(x[0], x[1], 0x7632), __byte_perm(x[2], x[3], 0x7632));
}
__device__ __forceinline__ void from_rows(uint2 upper, uint2 lower, uint32_t* x) {
  x[0] = __byte_perm(upper.x, lower.x, 0x5410), x[1] = __byte_perm(upper.x, lower.x, 0x7632);
  x[2] = __byte_perm(upper.y, lower.y, 0x5410), x[3] = __byte_perm(upper.y, lower.y, 0x7632);
}
// The codes of 32 features from the four threads that hold them: even threads get the first sixteen, odd ones the rest.
__device__ __forceinline__ uint32_t gather_codes(uint32_t first, uint32_t second, bool odd) {
  const uint32_t mine = (odd ? second : first) | __shfl_xor_sync(~0u, odd ? first : second, 1);
  return mine | __shfl_xor_sync(~0u, mine, 2);
}
