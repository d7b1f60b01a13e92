// The mean of |x|, and the two linear maps of a code that every derivative is made of.
#include <numeric>

#include "operators.h"
#include "parallel.h"

namespace drsn::cpu {
namespace {

template <class T>
void abs_mean_typed(const AbsMean& p) {
  using A = accumulator_t<T>;
  const auto& k = kernels<T>();
  const Lines lines(p.rows, p.per_sample);
  const LineCode code(p.code, lines, kAbsMeanPlanes);
  const T* x = as<T>(p.x);
  A* mean = as<A>(p.mean);
  const int64_t width = lines.width, unit_rows = lines.per_unit * width;
  two_passes(
      lines, false,
      [&](int64_t line, int64_t count, int64_t begin, int64_t n, double* sums) {
        const T* from = x + line * lines.length + begin;
        add_magnitudes(from, count, n, width, sums);
        for (int64_t i = 0; i < count && code.data; ++i) k.sign_code(from + i * n, code.write(line + i, begin), n);
      },
      [&](int64_t unit, int64_t count, const double* sums) {
        for (int64_t r = 0; r < count * unit_rows && !p.per_sample; ++r)
          mean[unit * unit_rows + r] = A(sums[r] / std::max<int64_t>(p.rows.length, 1));
        for (int64_t u = 0; u < count && p.per_sample; ++u) {
          const double all = std::accumulate(sums + u * unit_rows, sums + (u + 1) * unit_rows, 0.0);
          mean[unit + u] = A(all / std::max<int64_t>(p.rows.channels * p.rows.length, 1));
        }
      },
      [](int64_t, int64_t, int64_t, int64_t) {});
}

template <class T>
void combine_typed(const Combine& p) {
  using A = accumulator_t<T>;
  const auto& k = kernels<T>();
  const Lines lines(p.rows, false);
  const LineCode code(p.code, lines, p.planes);
  const T* g = p.planes > kActive ? as<T>(p.grad) : nullptr;
  T* out = as<T>(p.out);
  const std::vector<A> w = each_row<A>(p.planes > kActive ? p.w : RowValues{}, p.rows);
  const std::vector<A> v = each_row<A>(p.v, p.rows);
  for_each_task(lines.count, lines.length, [&](int64_t line) {
    const int64_t offset = line * lines.length;
    const AlongLine<A> along_w(w.empty() ? nullptr : w.data(), line, lines.width);
    const AlongLine<A> along_v(v.empty() ? nullptr : v.data(), line, lines.width);
    along_v.for_each(0, lines.length, [&](int64_t i, int64_t count) {
      k.combine(g ? g + offset + i : nullptr, code.read(line, i), along_w.at(i), along_v.at(i), out + offset + i,
                count);
    });
  });
}

template <class T>
void row_sums_typed(const RowSums& p) {
  using A = accumulator_t<T>;
  const Lines lines(p.rows, false);
  const LineCode code(p.code, lines, p.planes);
  const T* g = as<T>(p.grad);
  const int64_t width = lines.width;
  // The sum along sign(x) is the sum along active * sign(x) with kNonzero in the place of kActive.
  const auto sum_over = [&](bool active, A* out) {
    if (!out) return;
    if (active && p.planes <= kActive) return std::fill(out, out + p.rows.samples * p.rows.channels, A(0));
    two_passes(
        lines, false,
        [&](int64_t line, int64_t count, int64_t begin, int64_t n, double* sums) {
          Bits bits = code.read(line, begin);
          if (!active) bits.active = bits.nonzero;
          add_signed(g + line * lines.length + begin, bits, count, n, width, sums);
        },
        [&](int64_t unit, int64_t count, const double* sums) {
          std::copy(sums, sums + count * width, out + unit * width);
        },
        [](int64_t, int64_t, int64_t, int64_t) {});
  };
  sum_over(true, as<A>(p.active_sum));
  sum_over(false, as<A>(p.sign_sum));
}

}  // namespace

void abs_mean(const AbsMean& p) {
  with_type(p.dtype, [&](auto type) { abs_mean_typed<decltype(type)>(p); });
}

void combine(const Combine& p) {
  with_type(p.dtype, [&](auto type) { combine_typed<decltype(type)>(p); });
}

void row_sums(const RowSums& p) {
  with_type(p.dtype, [&](auto type) { row_sums_typed<decltype(type)>(p); });
}

}  // namespace drsn::cpu
