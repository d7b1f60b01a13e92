// The mean of |x| and its derivative.
#include "backend.h"
#include "lines.h"

namespace drsn::cpu {
namespace {

template <class T>
void forward(const AbsMean& p) {
  const Lines lines(p.rows, p.per_sample);
  const Segments mask(p.mask, lines, kAbsMeanPlanes);
  const T* x = as<T>(p.x);
  two_passes(
      lines, false,
      [&](const Range& at, double* sums) {
        add_abs_sums(lines, at, x, sums);
        for (int64_t i = 0; i < at.count && mask.exist(); ++i)
          loops<T>().sign_mask(x + lines.offset(at) + i * at.n, mask.write(at.line + i, at.begin), at.n);
      },
      [&](int64_t group, int64_t count, const double* sums) {
        set_means(p.rows, lines, p.per_sample, group, count, sums, as<accumulator_t<T>>(p.mean));
      },
      [](const Range&) {});
}

template <class T>
void backward(const AbsMeanBackward& p) {
  const Lines lines(p.rows, false);
  const Segments mask(p.mask, lines, kAbsMeanPlanes);
  const auto grad = row_buffer<accumulator_t<T>>(p.rows);
  copy_rows(p.grad, p.rows, 0, p.rows.samples * p.rows.channels, grad.get());
  for_each_piece(lines, [&](const Range& at) {
    combine_lines(lines, at, static_cast<const T*>(nullptr), mask, grad.get(), as<T>(p.dx));
  });
}

}  // namespace

void abs_mean(const AbsMean& p) {
  with_type(p.dtype, [&](auto type) { forward<decltype(type)>(p); });
}

void abs_mean_backward(const AbsMeanBackward& p) {
  with_type(p.dtype, [&](auto type) { backward<decltype(type)>(p); });
}

}  // namespace drsn::cpu
