// Included by one .cpp file an instruction set, which defines DRSN_SIMD (the namespace) and sets the target first.
// Sums are 32 partial sums in blocks of one length whatever the vectors' length: the same bits come out of every set.

#include <cstring>

#include "kernels.h"
#include "shrinkage_math.h"

// A lambda that is not inlined costs a call for each vector.
#define DRSN_LAMBDA __attribute__((always_inline))

namespace drsn::cpu::DRSN_SIMD {
namespace {

constexpr int kPartialSums = 32;
constexpr int64_t kBlock = 4096;  // numbers added in the accumulator's type; blocks are added in double

#if defined(DRSN_SIMD_AVX512)
#include "vectors_avx512.h"
#else
#include "vectors.h"
#endif

template <class T>
DRSN_INLINE vector_t<T> splat(accumulator_t<T> a) {
  return vector_t<T>{} + a;
}

// Calls term(i, count) for each vector of elements and adds up what it returns.
template <class T, class Term>
DRSN_INLINE double sum_terms(int64_t n, const Term& term) {
  constexpr int kStep = kLanes<T>;
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = n < begin + kBlock ? n : begin + kBlock;
    vector_t<T> part[kPartialSums / kStep] = {};
    int64_t i = begin;
    for (; i + kPartialSums <= end; i += kPartialSums) {
      for (int u = 0; u < kPartialSums / kStep; ++u) part[u] += term(i + u * kStep, int64_t(kStep));
    }
    for (int u = 0; i < end; i += kStep, ++u) part[u] += term(i, end - i);
    sum += total<T>(part);
  }
  return sum;
}

// Calls body(i, count) for each vector of elements; count is below its length in the last call alone.
template <class T, class Body>
DRSN_INLINE void for_each_vector(int64_t n, const Body& body) {
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + kLanes<T> <= n; i += kLanes<T>) body(i, int64_t(kLanes<T>));
  if (i < n) body(i, n - i);
}

// The bits of a vector in a plane; i is a multiple of 8. Shifts: a signed division costs three more instructions.
template <class T>
DRSN_INLINE void write_bits(uint8_t* plane, int64_t i, bits_t<T> bits, int64_t count) {
  if (sizeof(bits) == 1 || count <= 8) {
    plane[i >> 3] = uint8_t(bits);
  } else {
    std::memcpy(plane + (i >> 3), &bits, sizeof(bits));
  }
}

// The `count` bits from `bit` on; no byte is read that they do not reach into.
template <class T, bool kShifted>
DRSN_INLINE bits_t<T> read_bits(const uint8_t* plane, int64_t bit, int64_t count) {
  plane += bit >> 3;
  const int shift = kShifted ? int(bit & 7) : 0;
  if (count >= kLanes<T>) {
    bits_t<T> bits;
    std::memcpy(&bits, plane, sizeof(bits));
    return kShifted && shift ? bits_t<T>(bits >> shift | plane[sizeof(bits)] << (8 * sizeof(bits) - shift)) : bits;
  }
  unsigned bits = plane[0];
  if (shift + count > 8) bits |= unsigned(plane[1]) << 8;
  if (shift + count > 16) bits |= unsigned(plane[2]) << 16;
  return bits_t<T>(bits >> shift);
}

template <class T>
double abs_sum(const T* x, int64_t n) {
  return sum_terms<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA { return magnitude_of<T>(load(x + i, count)); });
}

template <class T>
void abs_add(const T* x, accumulator_t<T>* sums, int64_t n) {
  for_each_vector<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA {
    store(sums + i, load(sums + i, count) + magnitude_of<T>(load(x + i, count)), count);
  });
}

template <class T>
void sign_code(const T* x, Planes code, int64_t n) {
  const vector_t<T> zero = {};
  for_each_vector<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA {
    const vector_t<T> v = load(x + i, count);
    const bits_t<T> negative = less(v, zero);
    write_bits<T>(code.negative, i, negative, count);
    write_bits<T>(code.nonzero, i, negative | less(zero, v), count);
  });
}

enum class Code { kNone, kSoftThreshold, kShrink };

template <class T, Code kCode, bool kVary>
void shrink_loop(const T* x, const accumulator_t<T>* tau, const T* residual, T* y, Planes code, int64_t n) {
  using V = vector_t<T>;
  using B = bits_t<T>;
  const V zero = {};
  const V one = kVary ? zero : splat<T>(*tau);
  for_each_vector<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA {
    const V v = load(x + i, count);
    V raw = one;
    if constexpr (kVary) raw = load(tau + i, count);
    const V threshold = positive_part<T>(raw);
    const V magnitude = magnitude_of<T>(v);
    V out = with_sign<T>(positive_part<T>(magnitude - threshold), v);
    if (residual) out += load(residual + i, count);
    store(y + i, out, count);
    if constexpr (kCode != Code::kNone) {
      const B negative = less(v, zero);
      const B active = less(threshold, magnitude);
      if constexpr (kCode == Code::kShrink) {
        write_bits<T>(code.negative, i, negative, count);
        write_bits<T>(code.nonzero, i, less(zero, magnitude), count);
        write_bits<T>(code.active, i, active, count);
      } else {
        const B open = less(raw, zero);
        write_bits<T>(code.negative, i, active & (open | negative), count);
        write_bits<T>(code.active, i, active & ~open, count);
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

template <class T, bool kShifted>
DRSN_INLINE vector_t<T> signed_active(const T* g, const Bits& code, int64_t i, int64_t count) {
  const bits_t<T> active = read_bits<T, kShifted>(code.active, code.offset + i, count);
  const bits_t<T> negative = read_bits<T, kShifted>(code.negative, code.offset + i, count);
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
    for_each_vector<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA {
      const vector_t<T> term = signed_active<T, decltype(shifted)::value>(g, code, i, count);
      store(sums + i, load(sums + i, count) + term, count);
    });
  });
}

// kBand: the gradient alone; kSpread: with v, the first-order backward of shrink; kAny: whatever is there.
enum class Terms { kBand, kSpread, kAny };

template <class T, Terms kTerms, bool kShifted, bool kVary>
void combine_loop(const T* g, Bits code, const accumulator_t<T>* w, const accumulator_t<T>* v, T* out, int64_t n) {
  using V = vector_t<T>;
  using B = bits_t<T>;
  const V one_w = w && !kVary ? splat<T>(*w) : V{};
  const V one_v = v && !kVary ? splat<T>(*v) : V{};
  for_each_vector<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA {
    const int64_t bit = code.offset + i;
    const B negative = read_bits<T, kShifted>(code.negative, bit, count);
    const B active = code.active ? read_bits<T, kShifted>(code.active, bit, count) : B(0);
    V sum = {};
    if (kTerms != Terms::kAny || g) sum = keep(B(code.nonzero ? active : active | negative), load(g + i, count));
    if (kTerms == Terms::kAny && w) sum += keep(active, negate(negative, kVary ? load(w + i, count) : one_w));
    if (kTerms == Terms::kSpread || (kTerms == Terms::kAny && v)) {
      const B nonzero = read_bits<T, kShifted>(code.nonzero, bit, count);
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
  for_each_vector<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA { store(to + i, load(from + i, count), count); });
}

template <class T>
void narrow(const accumulator_t<T>* from, T* to, int64_t n) {
  for_each_vector<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA { store(to + i, load(from + i, count), count); });
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
