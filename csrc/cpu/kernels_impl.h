// Included by one .cpp file an instruction set, which defines DRSN_SIMD (the namespace) and sets the target first.
// Vectors of eight lanes whatever the instruction set, and sums over 32 lanes in blocks of one length: the same bits
// come out of every one of them.

#include <cstring>

#include "kernels.h"
#include "shrinkage_math.h"

// GCC wants the attribute on the call operator too: a lambda that is not inlined costs a call for eight elements.
#define DRSN_FORCED inline __attribute__((always_inline))
#define DRSN_LAMBDA __attribute__((always_inline))

namespace drsn::cpu::DRSN_SIMD {
namespace {

constexpr int kLanes = 8;
constexpr int kUnroll = 4;
constexpr int64_t kBlock = 4096;  // floats added in float; blocks are added in double

template <class A>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vector __attribute__((vector_size(32)));
  typedef int32_t Mask __attribute__((vector_size(32)));
};
template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(64)));
  typedef int64_t Mask __attribute__((vector_size(64)));
};
template <class T>
using vector_t = typename Lanes<accumulator_t<T>>::Vector;
template <class T>
using mask_t = typename Lanes<accumulator_t<T>>::Mask;

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

// GCC takes __builtin_convertvector apart in both directions.
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

DRSN_INLINE U16 high_halves(U32 v) {
#if defined(DRSN_SIMD_AVX512)
  const __m256i odd = _mm256_setr_epi16(1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
  return (U16)_mm256_castsi256_si128(_mm256_permutexvar_epi16(odd, (__m256i)v));
#else
  return low_halves(v >> 16);
#endif
}

DRSN_INLINE vector_t<float> load(const BFloat16* p) { return (vector_t<float>)(widen_words(read<U16>(p)) << 16); }

DRSN_INLINE void store(float* p, vector_t<float> v) { std::memcpy(p, &v, sizeof(v)); }
DRSN_INLINE void store(double* p, vector_t<double> v) { std::memcpy(p, &v, sizeof(v)); }
DRSN_INLINE void store(BFloat16* p, vector_t<float> v) {
  const U32 bits = (U32)v;
  // To nearest, ties to even; a NaN only loses its low bits, which a carry could make a number of.
  const U32 rounding = (((bits >> 16) & 1) + 0x7fff) & (U32)(v == v);
  const U16 narrow = high_halves(bits + rounding);
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
// Half precision in integer arithmetic: without F16C a compiler's own conversion is a call an element.
DRSN_INLINE vector_t<float> load(const Half* p) {
  const U32 half = widen_words(read<U16>(p));
  const U32 sign = (half & 0x8000) << 16;
  const U32 magnitude = half & 0x7fff;
  // Shifted into place the exponent is 112 short: a product with 2^112 is exact, for subnormal numbers too.
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

template <class T>
DRSN_INLINE vector_t<T> load(const T* p, int64_t count) {
  if (count >= kLanes) return load(p);
  T buffer[kLanes] = {};
  for (int i = 0; i < kLanes - 1; ++i) {
    if (i < count) buffer[i] = p[i];  // unrolled: a memcpy of unknown length is a call
  }
  return load(buffer);
}

template <class T>
DRSN_INLINE void store(T* p, vector_t<T> v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  T buffer[kLanes];
  store(buffer, v);
  for (int i = 0; i < kLanes - 1; ++i) {
    if (i < count) p[i] = buffer[i];
  }
}

// Eight comparisons as eight bits, and what eight bits keep or negate of a vector.
#if defined(DRSN_SIMD_AVX512)
DRSN_INLINE uint8_t less(vector_t<float> a, vector_t<float> b) {
  return _mm256_cmp_ps_mask((__m256)a, (__m256)b, _CMP_LT_OQ);
}
DRSN_INLINE uint8_t less(vector_t<double> a, vector_t<double> b) {
  return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ);
}
DRSN_INLINE vector_t<float> keep(uint8_t bits, vector_t<float> v) {
  return (vector_t<float>)_mm256_maskz_mov_ps(bits, (__m256)v);
}
DRSN_INLINE vector_t<double> keep(uint8_t bits, vector_t<double> v) {
  return (vector_t<double>)_mm512_maskz_mov_pd(bits, (__m512d)v);
}
DRSN_INLINE vector_t<float> negate(uint8_t bits, vector_t<float> v) {
  return (vector_t<float>)_mm256_mask_xor_ps((__m256)v, bits, (__m256)v, _mm256_set1_ps(-0.0f));
}
DRSN_INLINE vector_t<double> negate(uint8_t bits, vector_t<double> v) {
  return (vector_t<double>)_mm512_mask_xor_pd((__m512d)v, bits, (__m512d)v, _mm512_set1_pd(-0.0));
}
#else
#if defined(DRSN_SIMD_AVX2)
DRSN_INLINE uint8_t pack(mask_t<float> m) { return uint8_t(_mm256_movemask_ps((__m256)m)); }
DRSN_INLINE uint8_t pack(mask_t<double> m) {
  __m256d half[2];
  std::memcpy(half, &m, sizeof(m));
  return uint8_t(_mm256_movemask_pd(half[0]) | _mm256_movemask_pd(half[1]) << 4);
}
#elif defined(__SSE2__)
DRSN_INLINE uint8_t pack(mask_t<float> m) {
  __m128 half[2];
  std::memcpy(half, &m, sizeof(m));
  return uint8_t(_mm_movemask_ps(half[0]) | _mm_movemask_ps(half[1]) << 4);
}
DRSN_INLINE uint8_t pack(mask_t<double> m) {
  __m128d part[4];
  std::memcpy(part, &m, sizeof(m));
  return uint8_t(_mm_movemask_pd(part[0]) | _mm_movemask_pd(part[1]) << 2 | _mm_movemask_pd(part[2]) << 4 |
                 _mm_movemask_pd(part[3]) << 6);
}
#else
template <class M>
DRSN_INLINE uint8_t pack(M m) {
  uint8_t byte = 0;
  for (int i = 0; i < kLanes; ++i) byte |= uint8_t((m[i] & 1) << i);
  return byte;
}
#endif

template <class M>
DRSN_INLINE M unpack(uint8_t byte) {
  const M bit = {1, 2, 4, 8, 16, 32, 64, 128};
  return ((M{} + byte) & bit) == bit;
}

DRSN_INLINE uint8_t less(vector_t<float> a, vector_t<float> b) { return pack((mask_t<float>)(a < b)); }
DRSN_INLINE uint8_t less(vector_t<double> a, vector_t<double> b) { return pack((mask_t<double>)(a < b)); }
DRSN_INLINE vector_t<float> keep(uint8_t bits, vector_t<float> v) {
  using M = mask_t<float>;
  return (vector_t<float>)((M)v & unpack<M>(bits));
}
DRSN_INLINE vector_t<double> keep(uint8_t bits, vector_t<double> v) {
  using M = mask_t<double>;
  return (vector_t<double>)((M)v & unpack<M>(bits));
}
DRSN_INLINE vector_t<float> negate(uint8_t bits, vector_t<float> v) {
  using M = mask_t<float>;
  return (vector_t<float>)((M)v ^ (unpack<M>(bits) & INT32_MIN));
}
DRSN_INLINE vector_t<double> negate(uint8_t bits, vector_t<double> v) {
  using M = mask_t<double>;
  return (vector_t<double>)((M)v ^ (unpack<M>(bits) & INT64_MIN));
}
#endif

// The operations of a vector of accumulators.
template <class T>
struct Vec {
  using A = accumulator_t<T>;
  using V = vector_t<T>;
  using M = mask_t<T>;
  static constexpr M kSign = M{} + (sizeof(A) == 4 ? INT32_MIN : INT64_MIN);

  static DRSN_FORCED V splat(A a) { return V{} + a; }
  static DRSN_FORCED V abs(V x) { return (V)((M)x & ~kSign); }
  // max(x, 0) that keeps NaN: of two operands the instruction returns the second where either is NaN.
  static DRSN_FORCED V relu(V x) {
#if defined(DRSN_SIMD_AVX2)
    if constexpr (sizeof(A) == 4) return (V)_mm256_max_ps(_mm256_setzero_ps(), (__m256)x);
#endif
    return (V)((M)x & ~(M)(x <= V{}));
  }
  static DRSN_FORCED V with_sign(V magnitude, V sign) { return (V)((M)magnitude | ((M)sign & kSign)); }
};

// 32 partial sums, added up in one order.
template <class T>
struct Sum {
  using V = vector_t<T>;
  V part[kUnroll] = {};

  DRSN_FORCED double total() const {
    typedef accumulator_t<T> Half __attribute__((vector_size(sizeof(V) / 2)));
    const V all = (part[0] + part[1]) + (part[2] + part[3]);
    Half half[2];
    std::memcpy(half, &all, sizeof(all));
    const Half four = half[0] + half[1];
    return double((four[0] + four[2]) + (four[1] + four[3]));
  }
};

// Calls term(i, count) for each eight elements and adds up what it returns.
template <class T, class Term>
DRSN_INLINE double sum_terms(int64_t n, const Term& term) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = n < begin + kBlock ? n : begin + kBlock;
    Sum<T> sum;
    int64_t i = begin;
    for (; i + kUnroll * kLanes <= end; i += kUnroll * kLanes) {
      for (int u = 0; u < kUnroll; ++u) sum.part[u] += term(i + u * kLanes, kLanes);
    }
    for (int u = 0; i < end; i += kLanes, ++u) sum.part[u] += term(i, end - i);
    total += sum.total();
  }
  return total;
}

// A shift: a signed division costs three more instructions, as many as the arithmetic of a loop.
DRSN_INLINE int64_t byte_of(int64_t element) { return element >> 3; }

// Calls body(i, count) for each eight elements; count is below eight in the last call alone.
template <class Body>
DRSN_INLINE void for_each_eight(int64_t n, const Body& body) {
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + kLanes <= n; i += kLanes) body(i, int64_t(kLanes));
  if (i < n) body(i, n - i);
}

template <class T>
double abs_sum(const T* x, int64_t n) {
  return sum_terms<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA { return Vec<T>::abs(load(x + i, count)); });
}

template <class T>
void abs_add(const T* x, accumulator_t<T>* sums, int64_t n) {
  for_each_eight(n, [&](int64_t i, int64_t count) DRSN_LAMBDA {
    store(sums + i, load(sums + i, count) + Vec<T>::abs(load(x + i, count)), count);
  });
}

template <class T>
void sign_code(const T* x, Planes code, int64_t n) {
  using V = vector_t<T>;
  for_each_eight(n, [&](int64_t i, int64_t count) DRSN_LAMBDA {
    const V v = load(x + i, count);
    const uint8_t negative = less(v, V{});
    code.negative[byte_of(i)] = negative;
    code.nonzero[byte_of(i)] = negative | less(V{}, v);
  });
}

enum class Code { kNone, kSoftThreshold, kShrink };

template <class T, Code kCode, bool kVary>
void shrink_loop(const T* x, const accumulator_t<T>* tau, const T* residual, T* y, Planes code, int64_t n) {
  using W = Vec<T>;
  using V = typename W::V;
  const V one = kVary ? V{} : W::splat(*tau);
  for_each_eight(n, [&](int64_t i, int64_t count) DRSN_LAMBDA {
    const V v = load(x + i, count);
    V raw = one;
    if constexpr (kVary) raw = load(tau + i, count);
    const V threshold = W::relu(raw);
    const V magnitude = W::abs(v);
    V out = W::with_sign(W::relu(magnitude - threshold), v);
    if (residual) out += load(residual + i, count);
    store(y + i, out, count);
    if constexpr (kCode != Code::kNone) {
      const uint8_t negative = less(v, V{});
      const uint8_t active = less(threshold, magnitude);
      if constexpr (kCode == Code::kShrink) {
        code.negative[byte_of(i)] = negative;
        code.nonzero[byte_of(i)] = less(V{}, magnitude);
        code.active[byte_of(i)] = active;
      } else {
        const uint8_t open = less(raw, V{});
        code.negative[byte_of(i)] = active & (open | negative);
        code.active[byte_of(i)] = active & ~open;
      }
    }
  });
}

template <class T>
void shrink(const T* x, Values<accumulator_t<T>> tau, const T* residual, T* y, Planes code, int64_t n) {
  const auto run = [&](auto vary) {
    constexpr bool kVary = decltype(vary)::value;
    if (!code.active) return shrink_loop<T, Code::kNone, kVary>(x, tau.data, residual, y, code, n);
    if (code.nonzero) return shrink_loop<T, Code::kShrink, kVary>(x, tau.data, residual, y, code, n);
    return shrink_loop<T, Code::kSoftThreshold, kVary>(x, tau.data, residual, y, code, n);
  };
  tau.vary ? run(std::true_type{}) : run(std::false_type{});
}

// The `count` bits from `bit` on; the second byte is read only where they reach into it.
template <bool kShifted>
DRSN_INLINE uint8_t bits_at(const uint8_t* plane, int64_t bit, int64_t count) {
  if constexpr (!kShifted) return plane[byte_of(bit)];
  const int shift = int(bit & 7);
  const int next = shift + count > 8 ? plane[byte_of(bit) + 1] : 0;
  return uint8_t((plane[byte_of(bit)] | next << 8) >> shift);
}

template <class T, bool kShifted>
DRSN_INLINE vector_t<T> signed_active(const T* g, const Bits& code, int64_t i, int64_t count) {
  const uint8_t active = bits_at<kShifted>(code.active, code.offset + i, count);
  const uint8_t negative = bits_at<kShifted>(code.negative, code.offset + i, count);
  return keep(active, negate(negative, load(g + i, count)));
}

// Calls run(std::true_type) where the code is read across bytes, run(std::false_type) where it is not.
template <class Run>
DRSN_INLINE auto with_shift(const Bits& code, const Run& run) {
  return code.offset % 8 ? run(std::true_type{}) : run(std::false_type{});
}

template <class T>
double signed_sum(const T* g, Bits code, int64_t n) {
  return with_shift(code, [&](auto shifted) {
    return sum_terms<T>(n, [&](int64_t i, int64_t count)
                               DRSN_LAMBDA { return signed_active<T, decltype(shifted)::value>(g, code, i, count); });
  });
}

template <class T>
void signed_add(const T* g, Bits code, accumulator_t<T>* sums, int64_t n) {
  with_shift(code, [&](auto shifted) {
    for_each_eight(n, [&](int64_t i, int64_t count) DRSN_LAMBDA {
      const vector_t<T> term = signed_active<T, decltype(shifted)::value>(g, code, i, count);
      store(sums + i, load(sums + i, count) + term, count);
    });
  });
}

// kBand: the gradient alone; kSpread: with v, the first-order backward of shrink; kAny: whatever is there.
enum class Terms { kBand, kSpread, kAny };

template <class T, Terms kTerms, bool kShifted, bool kVary>
void combine_loop(const T* g, Bits code, const accumulator_t<T>* w, const accumulator_t<T>* v, T* out, int64_t n) {
  using W = Vec<T>;
  using V = typename W::V;
  const V one_w = w && !kVary ? W::splat(*w) : V{};
  const V one_v = v && !kVary ? W::splat(*v) : V{};
  for_each_eight(n, [&](int64_t i, int64_t count) DRSN_LAMBDA {
    const int64_t bit = code.offset + i;
    const uint8_t negative = bits_at<kShifted>(code.negative, bit, count);
    const uint8_t active = code.active ? bits_at<kShifted>(code.active, bit, count) : uint8_t(0);
    V sum = {};
    if (kTerms != Terms::kAny || g) sum = keep(code.nonzero ? active : active | negative, load(g + i, count));
    if (kTerms == Terms::kAny && w) sum += keep(active, negate(negative, kVary ? load(w + i, count) : one_w));
    if (kTerms == Terms::kSpread || (kTerms == Terms::kAny && v)) {
      const uint8_t nonzero = bits_at<kShifted>(code.nonzero, bit, count);
      sum += keep(nonzero, negate(negative, kVary ? load(v + i, count) : one_v));
    }
    store(out + i, sum, count);
  });
}

template <class T>
void combine(const T* g, Bits code, Values<accumulator_t<T>> w, Values<accumulator_t<T>> v, T* out, int64_t n) {
  with_shift(code, [&](auto shifted) {
    constexpr bool kShifted = decltype(shifted)::value;
    if (g && !w.data && !v.data) return combine_loop<T, Terms::kBand, kShifted, false>(g, code, w.data, v.data, out, n);
    if (w.vary || v.vary) {
      if (g && !w.data) return combine_loop<T, Terms::kSpread, kShifted, true>(g, code, w.data, v.data, out, n);
      return combine_loop<T, Terms::kAny, kShifted, true>(g, code, w.data, v.data, out, n);
    }
    if (g && !w.data) return combine_loop<T, Terms::kSpread, kShifted, false>(g, code, w.data, v.data, out, n);
    return combine_loop<T, Terms::kAny, kShifted, false>(g, code, w.data, v.data, out, n);
  });
}

template <class T>
void widen(const T* from, accumulator_t<T>* to, int64_t n) {
  for_each_eight(n, [&](int64_t i, int64_t count) DRSN_LAMBDA { store(to + i, load(from + i, count), count); });
}

template <class T>
void narrow(const accumulator_t<T>* from, T* to, int64_t n) {
  for_each_eight(n, [&](int64_t i, int64_t count) DRSN_LAMBDA { store(to + i, load(from + i, count), count); });
}

}  // namespace

template <class T>
const Kernels<T>& table() {
  static constexpr Kernels<T> kTable{abs_sum<T>,    abs_add<T>, sign_code<T>, shrink<T>, signed_sum<T>,
                                     signed_add<T>, combine<T>, widen<T>,     narrow<T>};
  return kTable;
}
template const Kernels<float>& table();
template const Kernels<double>& table();
template const Kernels<Half>& table();
template const Kernels<BFloat16>& table();

}  // namespace drsn::cpu::DRSN_SIMD
