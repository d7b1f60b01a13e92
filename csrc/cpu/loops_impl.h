// The loops. Each instruction set's .cpp file includes this once, after it has set DRSN_SIMD (the namespace) and
// target. Sums go as columns.h says, whatever the length of a vector: every set gives the same bits.

#include <cstring>

#include "loops.h"

// For lambdas in loops: one that is not inlined costs a call for each vector.
#define DRSN_LAMBDA __attribute__((always_inline))

namespace drsn::cpu::DRSN_SIMD {
namespace {

#if defined(DRSN_SIMD_AVX512)
#include "vectors_avx512.h"
#elif defined(__aarch64__)
#include "vectors_neon.h"
#else
#include "vectors.h"
#endif
#include "columns.h"

// Writes the bits of a vector to a plane; i is a multiple of 8. `i >> 3`, not `i / 8`: a signed division costs three
// more instructions.
template <class T>
DRSN_INLINE void write_bits(uint8_t* plane, int64_t i, bits_t<T> bits, int64_t count) {
  if (sizeof(bits) == 1 || count <= 8) {
    plane[i >> 3] = uint8_t(bits);
  } else {
    std::memcpy(plane + (i >> 3), &bits, sizeof(bits));
  }
}

// Reads `count` bits from `bit` on, and no byte beyond theirs.
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

// Writes a vector, of which a whole one may go past the caches.
template <class T>
DRSN_INLINE void write(T* out, vector_t<T> v, int64_t count, bool past_caches) {
  past_caches&& count >= kLanes<T> ? stream(out, v) : store(out, v, count);
}

// Whether the vectors from `out` on, which make up whole cache lines, go past the caches.
template <class T>
DRSN_INLINE bool streams(const T* out, Store to) {
  return to.stream && reinterpret_cast<uintptr_t>(out) % 64 == 0;
}

// How many elements further on memory is asked for what is read next. The first-level cache holds what lies between.
DRSN_INLINE int64_t read_ahead(Store to) { return smaller(to.rest, 2048); }

// The same of a line of n elements that `lines` others follow.
DRSN_INLINE Store before(Store to, int64_t lines, int64_t n) { return {to.stream, to.rest + lines * n}; }

// Adds the terms of a line, term(i, count), to its sums.
template <class T, class Term>
DRSN_INLINE void add_line(int64_t period, int64_t n, double* sums, const Term& term) {
  if ((period == 1 || period == kPartialSums) && n <= kBlock) {  // one block, with less to do for a short line
    constexpr int64_t kStep = kLanes<T>;
    vector_t<T> part[kPartialSums / kStep] = {};
    int64_t i = 0;
    for (; i + kPartialSums <= n; i += kPartialSums) {
      for (int u = 0; u < kPartialSums / kStep; ++u) part[u] += term(i + u * kStep, kStep);
    }
    for (int u = 0; i < n; i += kStep, ++u) part[u] += term(i, n - i);
    if (period == 1) {
      *sums += total<T>(part);
    } else {
      accumulator_t<T> values[kPartialSums];
      for (int u = 0; u < kPartialSums / kStep; ++u) store(values + u * kStep, part[u], kStep);
      for (int j = 0; j < kPartialSums; ++j) sums[j] += double(values[j]);
    }
    return;
  }
  struct None {};
  add_terms<T, 1>(
      period, 1, n, sums, [](auto) DRSN_LAMBDA { return None{}; },
      [&](int64_t, None, int64_t i, int64_t count, vector_t<T>* out) DRSN_LAMBDA { out[0] = term(i, count); });
}

template <class T>
void abs_sums(const T* x, int64_t period, int64_t lines, int64_t n, double* sums) {
  for (int64_t l = 0; l < lines; ++l, x += n, sums += period) {
    add_line<T>(period, n, sums,
                [&](int64_t i, int64_t count) DRSN_LAMBDA { return magnitude_of<T>(load(x + i, count)); });
  }
}

template <class T>
void sign_mask(const T* x, Planes mask, int64_t n) {
  const vector_t<T> zero = {};
  for_each_vector<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA {
    const vector_t<T> v = load(x + i, count);
    const bits_t<T> negative = less(v, zero);
    write_bits<T>(mask.negative, i, negative, count);
    write_bits<T>(mask.nonzero, i, negative | less(zero, v), count);
  });
}

enum class MaskKind { kNone, kSoftThreshold, kShrink };

// x shrunk by tau at element i, and its mask there.
template <class T, MaskKind kMask>
DRSN_INLINE vector_t<T> shrunk(const T* x, vector_t<T> tau, const T* residual, const Planes& mask, int64_t i,
                               int64_t count) {
  using V = vector_t<T>;
  using B = bits_t<T>;
  const V zero = {};
  const V v = load(x + i, count);
  const V threshold = positive_part<T>(tau);
  const V magnitude = magnitude_of<T>(v);
  V out = with_sign<T>(positive_part<T>(magnitude - threshold), v);
  if (residual) out += load(residual + i, count);
  if constexpr (kMask != MaskKind::kNone) {
    const B negative = less(v, zero);
    const B active = less(threshold, magnitude);
    if constexpr (kMask == MaskKind::kShrink) {
      write_bits<T>(mask.negative, i, negative, count);
      write_bits<T>(mask.nonzero, i, less(zero, magnitude), count);
      write_bits<T>(mask.active, i, active, count);
    } else {
      const B open = less(tau, zero);
      write_bits<T>(mask.negative, i, active & (open | negative), count);
      write_bits<T>(mask.active, i, active & ~open, count);
    }
  }
  return out;
}

template <class T, MaskKind kMask>
DRSN_INLINE void shrink_line(const T* x, const accumulator_t<T>* tau, int64_t period, const T* residual, T* y,
                             Planes mask, int64_t n, Store to) {
  const bool past_caches = streams(y, to);
  const int64_t ahead = read_ahead(to);
  for_each_vector<T>(
      period, 1, n, [&](auto column) DRSN_LAMBDA { return of(column, tau); },
      [&](int64_t, vector_t<T> with, int64_t i, int64_t count) DRSN_LAMBDA {
        __builtin_prefetch(x + i + ahead);
        write(y + i, shrunk<T, kMask>(x, with, residual, mask, i, count), count, past_caches);
      });
}

// The same with the mask of shrink where there is one.
template <class T>
DRSN_INLINE void shrink_line(const T* x, const accumulator_t<T>* tau, int64_t period, const T* residual, T* y,
                             Planes mask, int64_t n, Store to) {
  mask.active ? shrink_line<T, MaskKind::kShrink>(x, tau, period, residual, y, mask, n, to)
              : shrink_line<T, MaskKind::kNone>(x, tau, period, residual, y, mask, n, to);
}

template <class T>
void shrink_lines(const T* x, const accumulator_t<T>* tau, int64_t period, const T* residual, T* y, Planes mask,
                  int64_t lines, int64_t n, Store to) {
  for (int64_t l = 0; l < lines; ++l) {
    shrink_line(x + l * n, tau + l * period, period, residual ? residual + l * n : nullptr, y + l * n,
                planes_of_row(mask, l), n, before(to, lines - l - 1, n));
  }
}

// A tau for each element, or one for all.
template <class T, MaskKind kMask>
DRSN_INLINE void shrink_by(const T* x, Values<accumulator_t<T>> tau, const T* residual, T* y, Planes mask, int64_t n,
                           Store to) {
  if (!tau.vary) return shrink_line<T, kMask>(x, tau.data, 1, residual, y, mask, n, to);
  const bool past_caches = streams(y, to);
  for_each_vector<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA {
    write(y + i, shrunk<T, kMask>(x, load(tau.data + i, count), residual, mask, i, count), count, past_caches);
  });
}

template <class T>
void shrink(const T* x, Values<accumulator_t<T>> tau, const T* residual, T* y, Planes mask, int64_t n, Store to) {
  mask.active ? shrink_by<T, MaskKind::kSoftThreshold>(x, tau, residual, y, mask, n, to)
              : shrink_by<T, MaskKind::kNone>(x, tau, residual, y, mask, n, to);
}

template <class T, bool kShifted>
DRSN_INLINE vector_t<T> active_term(const T* g, const ConstPlanes& mask, int64_t i, int64_t count) {
  const bits_t<T> active = read_bits<T, kShifted>(mask.active, mask.offset + i, count);
  const bits_t<T> negative = read_bits<T, kShifted>(mask.negative, mask.offset + i, count);
  return keep(active, negate(negative, load(g + i, count)));
}

// Calls run(std::true_type) where a vector's bits do not begin at a byte, else run(std::false_type).
template <class Run>
DRSN_INLINE void with_shift(bool shifted, const Run& run) {
  shifted ? run(std::true_type{}) : run(std::false_type{});
}

template <class T>
void active_sums(const T* g, ConstPlanes mask, int64_t period, int64_t lines, int64_t n, double* sums) {
  // The sums of a period that is no multiple of 8 are of elements whose bits begin anywhere.
  const bool shifted = mask.offset % 8 || (period > 1 && period % 8);
  with_shift(shifted, [&](auto shift) {
    for (int64_t l = 0; l < lines; ++l, g += n, sums += period) {
      const ConstPlanes planes = planes_of_row(mask, l);
      add_line<T>(period, n, sums, [&](int64_t i, int64_t count) DRSN_LAMBDA {
        return active_term<T, decltype(shift)::value>(g, planes, i, count);
      });
    }
  });
}

template <class T>
void tau_gradient(const T* g, ConstPlanes mask, accumulator_t<T>* out, int64_t n) {
  const vector_t<T> zero = {};
  with_shift(mask.offset % 8, [&](auto shift) {
    for_each_vector<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA {
      store(out + i, zero - active_term<T, decltype(shift)::value>(g, mask, i, count), count);
    });
  });
}

// kPass: g alone, in the mask of soft_threshold; kSign: share alone; kBoth: both.
enum class Terms { kPass, kSign, kBoth };

template <class T, Terms kTerms, bool kShifted>
DRSN_INLINE void gradient_line(const T* g, ConstPlanes mask, const accumulator_t<T>* share, int64_t period, T* out,
                               int64_t n, Store to) {
  using V = vector_t<T>;
  using B = bits_t<T>;
  const bool past_caches = streams(out, to);
  const int64_t ahead = read_ahead(to);
  for_each_vector<T>(
      period, 1, n, [&](auto column) DRSN_LAMBDA { return of(column, share); },
      [&](int64_t, V with, int64_t i, int64_t count) DRSN_LAMBDA {
        const int64_t bit = mask.offset + i;
        const B negative = read_bits<T, kShifted>(mask.negative, bit, count);
        V sum = {};
        if constexpr (kTerms != Terms::kSign) {
          __builtin_prefetch(g + i + ahead);
          const B active = read_bits<T, kShifted>(mask.active, bit, count);
          sum = keep(B(kTerms == Terms::kPass ? active | negative : active), load(g + i, count));
        }
        if constexpr (kTerms != Terms::kPass) {
          const B nonzero = read_bits<T, kShifted>(mask.nonzero, bit, count);
          sum += keep(nonzero, negate(negative, with));
        }
        write(out + i, sum, count, past_caches);
      });
}

template <class T>
void pass(const T* g, ConstPlanes mask, T* out, int64_t n, Store to) {
  const accumulator_t<T> none = 0;
  with_shift(mask.offset % 8, [&](auto shift) {
    gradient_line<T, Terms::kPass, decltype(shift)::value>(g, mask, &none, 1, out, n, to);
  });
}

template <class T>
void combine_lines(const T* g, ConstPlanes mask, const accumulator_t<T>* share, int64_t period, T* out, int64_t lines,
                   int64_t n, Store to) {
  for (int64_t l = 0; l < lines; ++l) {
    const ConstPlanes planes = planes_of_row(mask, l);
    const Store line_to = before(to, lines - l - 1, n);
    g ? gradient_line<T, Terms::kBoth, false>(g + l * n, planes, share + l * period, period, out + l * n, n, line_to)
      : gradient_line<T, Terms::kSign, false>(g, planes, share + l * period, period, out + l * n, n, line_to);
  }
}

#include "batch_norm_loops.h"
#include "convolution_loops.h"
#include "row_loops.h"

template <class T>
void widen(const T* from, accumulator_t<T>* to, int64_t n) {
  for_each_vector<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA { store(to + i, load(from + i, count), count); });
}

template <class T>
void narrow(const accumulator_t<T>* from, T* to, int64_t n) {
  for_each_vector<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA { store(to + i, load(from + i, count), count); });
}

// kRows rows of the product for a vector of columns: the sums stay in registers.
template <class A, int kRows>
DRSN_INLINE void multiply_rows(const Product<A>& p, int64_t row, int64_t column, int64_t count) {
  using V = vector_t<A>;
  V sums[kRows] = {};
  const A* a = p.a + row * p.a_row;
  const A* b = p.b + column;
  for (int64_t k = 0; k < p.terms; ++k, a += p.a_k, b += p.b_k) {
    const V values = load(b, count);
    for (int r = 0; r < kRows; ++r) sums[r] += splat<A>(a[r * p.a_row]) * values;
  }
  for (int r = 0; r < kRows; ++r) store(p.out + (row + r) * p.out_row + column, sums[r], count);
}

template <class A>
void multiply_all(const Product<A>& p) {
  for (int64_t column = 0; column < p.columns; column += kLanes<A>) {
    const int64_t count = p.columns - column;
    int64_t row = 0;
    for (; row + 8 <= p.rows; row += 8) {
      if (count >= kLanes<A>) {
        multiply_rows<A, 8>(p, row, column, kLanes<A>);
      } else {
        multiply_rows<A, 8>(p, row, column, count);
      }
    }
    for (; row < p.rows; ++row) multiply_rows<A, 1>(p, row, column, count);
  }
}

}  // namespace

void multiply(const Product<float>& p) { multiply_all(p); }
void multiply(const Product<double>& p) { multiply_all(p); }

void convolve(const Taps& taps, const float* bias, float* out, int64_t n) {
  taps.group < kLanes<float> ? convolve_groups<false>(taps, bias, out, n) : convolve_groups<true>(taps, bias, out, n);
}

void correlate(const Taps& taps, const float* g, int64_t n, double* sums) {
  taps.group < kLanes<float> ? correlate_groups<false>(taps, g, n, sums) : correlate_groups<true>(taps, g, n, sums);
}

template <class T>
const Loops<T>& table() {
  static constexpr Loops<T> kTable{abs_sums<T>,
                                   sign_mask<T>,
                                   shrink<T>,
                                   shrink_lines<T>,
                                   mean_shrink_rows<T>,
                                   active_sums<T>,
                                   tau_gradient<T>,
                                   pass<T>,
                                   combine_lines<T>,
                                   mean_shrink_rows_backward<T>,
                                   centered_sums<T>,
                                   moments<T>,
                                   norm_abs_sums<T>,
                                   norm_shrink<T>,
                                   batch_norm_relu<T>,
                                   batch_norm_sums<T, true>,
                                   batch_norm_combine<T, true>,
                                   batch_norm_sums<T, false>,
                                   batch_norm_combine<T, false>,
                                   widen<T>,
                                   narrow<T>};
  return kTable;
}
template const Loops<float>& table();
template const Loops<double>& table();
template const Loops<Half>& table();
template const Loops<BFloat16>& table();

}  // namespace drsn::cpu::DRSN_SIMD
