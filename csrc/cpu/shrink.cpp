// tau = alpha * mean|x|, soft threshold and residual. A row, or a group of lines (per_sample, channels_last), goes
// through both passes at once, in the cache if it fits.
#include "backend.h"
#include "lines.h"

namespace drsn::cpu {
namespace {

// Calls run(range, alpha) for rows of one piece, with the alpha of each.
template <class A, class Run>
void for_each_rows(const Lines& lines, const Rows& rows, const RowValues& alpha, const Run& run) {
  for_each_part(lines.count, lines.length, [&](int64_t begin, int64_t end) {
    constexpr int64_t kStep = 256;
    A numbers[kStep];
    for (int64_t row = begin; row < end; row += kStep) {
      const int64_t count = std::min(kStep, end - row);
      copy_rows(alpha, rows, row, count, numbers);
      run(Range{row, count, 0, lines.length, (end - row - count) * lines.length}, numbers);
    }
  });
}

template <class T>
void forward(const Shrink& p) {
  using A = accumulator_t<T>;
  const Lines lines(p.rows, p.per_sample);
  const Segments mask(p.mask, lines, kShrinkPlanes);
  const T* x = as<T>(p.x);
  const T* residual = as<T>(p.residual);
  T* y = as<T>(p.y);
  A* mean = as<A>(p.mean);
  if (lines.are_groups()) {
    return for_each_rows<A>(lines, p.rows, p.alpha, [&](const Range& at, const A* alpha) {
      const int64_t offset = lines.offset(at);
      loops<T>().mean_shrink_rows(x + offset, alpha, mean + at.line, residual ? residual + offset : nullptr, y + offset,
                                  mask.write(at.line, 0), at.count, at.n, lines.store(at, at.line, x, y));
    });
  }
  const auto tau = row_buffer<A>(p.rows);
  two_passes(
      lines, false, [&](const Range& at, double* sums) { add_abs_sums(lines, at, x, sums); },
      [&](int64_t group, int64_t count, const double* sums) {
        set_means(p.rows, lines, p.per_sample, group, count, sums, mean);
        const int64_t n = lines.rows_per_group();
        copy_rows(p.alpha, p.rows, group * n, count * n, &tau[group * n]);
        for (int64_t row = group * n; row < (group + count) * n; ++row)
          tau[row] = relu(tau[row] * mean[p.per_sample ? row / n : row]);
      },
      [&](const Range& at) { shrink_lines(lines, at, x, tau.get(), residual, y, mask); });
}

template <class T>
void backward(const ShrinkBackward& p) {
  using A = accumulator_t<T>;
  const Lines lines(p.rows, p.per_sample);
  const Segments mask(p.mask, lines, kShrinkPlanes);
  const int64_t samples = p.rows.samples, channels = p.rows.channels, length = p.rows.length;
  const T* g = as<T>(p.grad);
  T* dx = as<T>(p.dx);
  const A* mean = as<A>(p.mean);
  const A* grad_mean = as<A>(p.grad_mean);
  const bool summed = p.dalpha && !(p.alpha_per_sample && p.alpha_per_channel);
  const auto dalpha_of_rows = summed ? row_buffer<A>(p.rows) : nullptr;
  A* dalpha = summed ? dalpha_of_rows.get() : as<A>(p.dalpha);
  const auto add_up = [&] {
    if (!summed) return;
    const int64_t out_channels = p.alpha_per_channel ? channels : 1;
    std::vector<double> sums((p.alpha_per_sample ? samples : 1) * out_channels);
    for (int64_t row = 0; row < samples * channels; ++row) {
      const int64_t n = p.alpha_per_sample ? row / channels : 0, c = p.alpha_per_channel ? row % channels : 0;
      sums[n * out_channels + c] += dalpha[row];
    }
    std::copy(sums.begin(), sums.end(), as<A>(p.dalpha));
  };
  if (lines.are_groups()) {
    for_each_rows<A>(lines, p.rows, p.alpha, [&](const Range& at, const A* alpha) {
      const int64_t offset = lines.offset(at);
      loops<T>().mean_shrink_rows_backward(g + offset, mask.read(at.line, 0), alpha, mean + at.line,
                                           grad_mean ? grad_mean + at.line : nullptr,
                                           dalpha ? dalpha + at.line : nullptr, dx ? dx + offset : nullptr, at.count,
                                           at.n, lines.store(at, at.line, g, dx));
    });
    return add_up();
  }
  const auto share = row_buffer<A>(p.rows);  // first alpha
  two_passes(
      lines, false, [&](const Range& at, double* sums) { add_active_sums(lines, at, g, mask, sums); },
      [&](int64_t group, int64_t count, const double* sums) {
        const int64_t n = lines.rows_per_group();
        copy_rows(p.alpha, p.rows, group * n, count * n, &share[group * n]);
        for (int64_t u = group; u < group + count; ++u) {
          double dmean = 0;
          for (int64_t row = u * n; row < (u + 1) * n; ++row) {
            const A alpha = share[row], m = mean[p.per_sample ? u : row];
            const A dtau = threshold_gradient(alpha, m, sums[row - group * n]);
            if (dalpha) dalpha[row] = dtau * m;
            if (p.per_sample) {
              dmean += double(dtau) * alpha;
            } else {
              share[row] = (dtau * alpha + (grad_mean ? grad_mean[row] : A(0))) / A(length);
            }
          }
          if (p.per_sample) {
            if (grad_mean) dmean += grad_mean[u];
            std::fill_n(&share[u * n], n, A(dmean / double(channels * length)));
          }
        }
      },
      [&](const Range& at) {
        if (dx) combine_lines(lines, at, g, mask, share.get(), dx);
      });
  add_up();
}

}  // namespace

void shrink(const Shrink& p) {
  with_type(p.dtype, [&](auto type) { forward<decltype(type)>(p); });
}

void shrink_backward(const ShrinkBackward& p) {
  with_type(p.dtype, [&](auto type) { backward<decltype(type)>(p); });
}

}  // namespace drsn::cpu
