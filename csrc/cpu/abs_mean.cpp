// The mean of |x| and its derivative.
#include <numeric>

#include "backend.h"
#include "parallel.h"

namespace drsn::cpu {
namespace {

template <class T>
void abs_mean_typed(const AbsMean& p) {
  using A = accumulator_t<T>;
  const auto& loop = loops<T>();
  const Lines lines(p.rows, p.per_sample);
  const LineMask mask(p.mask, lines, kAbsMeanPlanes);
  const T* x = as<T>(p.x);
  A* mean = as<A>(p.mean);
  const int64_t width = lines.width, unit_rows = lines.per_unit * width;
  two_passes(
      lines, false,
      [&](int64_t line, int64_t count, int64_t begin, int64_t n, double* sums) {
        const T* from = x + line * lines.length + begin;
        add_magnitudes(from, count, n, width, sums);
        for (int64_t i = 0; i < count && mask.data; ++i) loop.sign_mask(from + i * n, mask.write(line + i, begin), n);
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
void abs_mean_backward_typed(const AbsMeanBackward& p) {
  using A = accumulator_t<T>;
  const auto& loop = loops<T>();
  const Lines lines(p.rows, false);
  const LineMask mask(p.mask, lines, kAbsMeanPlanes);
  T* dx = as<T>(p.dx);
  const std::vector<A> grad = each_row<A>(p.grad, p.rows);
  for_each_task(lines.count, lines.length, [&](int64_t line) {
    const AlongLine<A> along(grad.data(), line, lines.width);
    along.for_each(0, lines.length, [&](int64_t i, int64_t count) {
      loop.combine(nullptr, mask.read(line, i), along.at(i), dx + line * lines.length + i, count);
    });
  });
}

}  // namespace

void abs_mean(const AbsMean& p) {
  with_type(p.dtype, [&](auto type) { abs_mean_typed<decltype(type)>(p); });
}

void abs_mean_backward(const AbsMeanBackward& p) {
  with_type(p.dtype, [&](auto type) { abs_mean_backward_typed<decltype(type)>(p); });
}

}  // namespace drsn::cpu
