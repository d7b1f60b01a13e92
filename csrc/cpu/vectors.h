// Vectors of eight numbers in the compiler's own vector types, for any instruction set. Where compilers do badly there
// are intrinsics for AVX2. Part of loops_impl.h.

template <class A>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vector __attribute__((vector_size(32)));
  typedef int32_t Comparison __attribute__((vector_size(32)));
};
template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(64)));
  typedef int64_t Comparison __attribute__((vector_size(64)));
};
template <class T>
using vector_t = typename Lanes<accumulator_t<T>>::Vector;
template <class T>
using compare_t = typename Lanes<accumulator_t<T>>::Comparison;

typedef uint16_t U16 __attribute__((vector_size(16)));
typedef uint32_t U32 __attribute__((vector_size(32)));

template <class V, class S>
DRSN_INLINE V read(const S* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

DRSN_INLINE vector_t<float> load(const float* p) { return read<vector_t<float>>(p); }
DRSN_INLINE vector_t<double> load(const double* p) { return read<vector_t<double>>(p); }

// GCC splits __builtin_convertvector into single elements.
DRSN_INLINE U32 widen_words(U16 v) {
#if defined(DRSN_SIMD_AVX2)
  return (U32)_mm256_cvtepu16_epi32((__m128i)v);
#else
  return __builtin_convertvector(v, U32);
#endif
}
DRSN_INLINE U16 low_halves(U32 v) {
#if defined(DRSN_SIMD_AVX2)
  const __m256i packed = _mm256_packus_epi32((__m256i)v, (__m256i)v);
  return (U16)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
  return __builtin_convertvector(v, U16);
#endif
}

DRSN_INLINE vector_t<float> load(const BFloat16* p) { return (vector_t<float>)(widen_words(read<U16>(p)) << 16); }

DRSN_INLINE void store(float* p, vector_t<float> v) { std::memcpy(p, &v, sizeof(v)); }
DRSN_INLINE void store(double* p, vector_t<double> v) { std::memcpy(p, &v, sizeof(v)); }
DRSN_INLINE void store(BFloat16* p, vector_t<float> v) {
  const U32 bits = (U32)v;
  // To nearest, ties to even. A NaN is only cut off: rounding up could make it a number.
  const U32 rounding = (((bits >> 16) & 1) + 0x7fff) & (U32)(v == v);
  const U16 narrow = low_halves((bits + rounding) >> 16);
  std::memcpy(p, &narrow, sizeof(narrow));
}

#if defined(DRSN_SIMD_AVX2)
DRSN_INLINE vector_t<float> load(const Half* p) {
  return (vector_t<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
DRSN_INLINE void store(Half* p, vector_t<float> v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
// Half precision in integer arithmetic: without F16C a compiler calls a function for each element.
DRSN_INLINE vector_t<float> load(const Half* p) {
  const U32 half = widen_words(read<U16>(p));
  const U32 sign = (half & 0x8000) << 16;
  const U32 magnitude = half & 0x7fff;
  // After the shift the exponent is 112 too small. A product with 2^112 is exact, for subnormal numbers too.
  const U32 scaled = (U32)((vector_t<float>)(magnitude << 13) * 0x1p112f);
  const U32 special = (U32)(magnitude >= 0x7c00) & 0x7f800000;
  return (vector_t<float>)(scaled | special | sign);
}
DRSN_INLINE void store(Half* p, vector_t<float> v) {
  const U32 bits = (U32)v;
  const U32 sign = (bits >> 16) & 0x8000;
  const U32 magnitude = bits & 0x7fffffff;
  const U32 normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 aligns a subnormal number's last place with float's, and rounds it to even on the way.
  const U32 subnormal = (U32)((vector_t<float>)magnitude + 0.5f) - 0x3f000000;
  const U32 small = (U32)(magnitude < 0x38800000);
  const U32 over = (U32)(magnitude >= 0x47800000);
  const U32 nan = (U32)(magnitude > 0x7f800000);
  U32 half = (subnormal & small) | (normal & ~small);
  half = (half & ~over) | (over & 0x7c00) | (nan & 0x200);
  const U16 narrow = low_halves(half | sign);
  std::memcpy(p, &narrow, sizeof(narrow));
}
#endif

// pack, less and at_most: eight comparisons as eight bits. keep and negate: what to do with the elements whose bits are
// set.
#if defined(DRSN_SIMD_AVX2)
DRSN_INLINE uint8_t pack(compare_t<float> c) { return uint8_t(_mm256_movemask_ps((__m256)c)); }
DRSN_INLINE uint8_t pack(compare_t<double> c) {
  __m256d half[2];
  std::memcpy(half, &c, sizeof(c));
  return uint8_t(_mm256_movemask_pd(half[0]) | _mm256_movemask_pd(half[1]) << 4);
}
#elif defined(__SSE2__)
DRSN_INLINE uint8_t pack(compare_t<float> c) {
  __m128 half[2];
  std::memcpy(half, &c, sizeof(c));
  return uint8_t(_mm_movemask_ps(half[0]) | _mm_movemask_ps(half[1]) << 4);
}
DRSN_INLINE uint8_t pack(compare_t<double> c) {
  __m128d part[4];
  std::memcpy(part, &c, sizeof(c));
  return uint8_t(_mm_movemask_pd(part[0]) | _mm_movemask_pd(part[1]) << 2 | _mm_movemask_pd(part[2]) << 4 |
                 _mm_movemask_pd(part[3]) << 6);
}
#else
template <class C>
DRSN_INLINE uint8_t pack(C c) {
  uint8_t byte = 0;
  for (int i = 0; i < 8; ++i) byte |= uint8_t((c[i] & 1) << i);
  return byte;
}
#endif

template <class C>
DRSN_INLINE C unpack(uint8_t byte) {
  const C bit = {1, 2, 4, 8, 16, 32, 64, 128};
  return ((C{} + byte) & bit) == bit;
}

DRSN_INLINE uint8_t less(vector_t<float> a, vector_t<float> b) { return pack((compare_t<float>)(a < b)); }
DRSN_INLINE uint8_t less(vector_t<double> a, vector_t<double> b) { return pack((compare_t<double>)(a < b)); }
DRSN_INLINE uint8_t at_most(vector_t<float> a, vector_t<float> b) { return pack((compare_t<float>)(a <= b)); }
DRSN_INLINE uint8_t at_most(vector_t<double> a, vector_t<double> b) { return pack((compare_t<double>)(a <= b)); }
DRSN_INLINE vector_t<float> keep(uint8_t bits, vector_t<float> v) {
  using C = compare_t<float>;
  return (vector_t<float>)((C)v & unpack<C>(bits));
}
DRSN_INLINE vector_t<double> keep(uint8_t bits, vector_t<double> v) {
  using C = compare_t<double>;
  return (vector_t<double>)((C)v & unpack<C>(bits));
}
DRSN_INLINE vector_t<float> negate(uint8_t bits, vector_t<float> v) {
  using C = compare_t<float>;
  return (vector_t<float>)((C)v ^ (unpack<C>(bits) & INT32_MIN));
}
DRSN_INLINE vector_t<double> negate(uint8_t bits, vector_t<double> v) {
  using C = compare_t<double>;
  return (vector_t<double>)((C)v ^ (unpack<C>(bits) & INT64_MIN));
}

// multiply_add: a * b + c, in one rounding where the processor has it. repeat: *p everywhere. permute: element from[i]
// of v at i.
#if defined(DRSN_SIMD_AVX2)
DRSN_INLINE vector_t<float> repeat(const float* p) { return (vector_t<float>)_mm256_broadcast_ss(p); }
DRSN_INLINE vector_t<float> multiply_add(vector_t<float> a, vector_t<float> b, vector_t<float> c) {
  return (vector_t<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
DRSN_INLINE vector_t<float> permute(vector_t<float> v, const int32_t* from) {
  const __m256i places = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (vector_t<float>)_mm256_permutevar8x32_ps((__m256)v, places);
}
#else
DRSN_INLINE vector_t<float> repeat(const float* p) { return vector_t<float>{} + *p; }
DRSN_INLINE vector_t<float> multiply_add(vector_t<float> a, vector_t<float> b, vector_t<float> c) { return a * b + c; }
DRSN_INLINE vector_t<float> permute(vector_t<float> v, const int32_t* from) {
  vector_t<float> out;
  for (int i = 0; i < 8; ++i) out[i] = v[from[i]];
  return out;
}
#endif

template <class T>
DRSN_INLINE compare_t<T> sign_bit() {
  return compare_t<T>{} + (sizeof(accumulator_t<T>) == 4 ? INT32_MIN : INT64_MIN);
}
template <class T>
DRSN_INLINE vector_t<T> magnitude_of(vector_t<T> x) {
  return (vector_t<T>)((compare_t<T>)x & ~sign_bit<T>());
}
template <class T>
DRSN_INLINE vector_t<T> with_sign(vector_t<T> magnitude, vector_t<T> sign) {
  return (vector_t<T>)((compare_t<T>)magnitude | ((compare_t<T>)sign & sign_bit<T>()));
}
// max(x, 0) that keeps NaN and -0: of two operands the instruction returns the second where either is NaN or both are
// 0.
template <class T>
DRSN_INLINE vector_t<T> positive_part(vector_t<T> x) {
#if defined(DRSN_SIMD_AVX2)
  if constexpr (sizeof(accumulator_t<T>) == 4) return (vector_t<T>)_mm256_max_ps(_mm256_setzero_ps(), (__m256)x);
#endif
  return (vector_t<T>)((compare_t<T>)x & ~(compare_t<T>)(x < vector_t<T>{}));
}

// The sum of 32 partial sums.
template <class T>
DRSN_INLINE double total(const vector_t<T>* part) {
  typedef accumulator_t<T> Half __attribute__((vector_size(sizeof(vector_t<T>) / 2)));
  const vector_t<T> all = (part[0] + part[1]) + (part[2] + part[3]);
  Half half[2];
  std::memcpy(half, &all, sizeof(all));
  const Half four = half[0] + half[1];
  return double((four[0] + four[2]) + (four[1] + four[3]));
}

#include "vectors_tail.h"
