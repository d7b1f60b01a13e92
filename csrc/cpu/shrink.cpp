// tau = alpha * mean|x|, soft threshold and residual: a unit is summed and shrunk while it is in the cache.
#include <numeric>

#include "backend.h"
#include "parallel.h"

namespace drsn::cpu {
namespace {

template <class T>
void shrink_typed(const Shrink& p) {
  using A = accumulator_t<T>;
  const Lines lines(p.rows, p.per_sample);
  const LineMask mask(p.mask, lines, kShrinkPlanes);
  const int64_t channels = p.rows.channels, length = p.rows.length, width = lines.width;
  const T* x = as<T>(p.x);
  const T* residual = as<T>(p.residual);
  T* y = as<T>(p.y);
  A* mean = as<A>(p.mean);
  const std::vector<A> alpha = each_row<A>(p.alpha, p.rows);
  std::vector<A> tau(alpha.size());
  const int64_t unit_rows = lines.per_unit * width;

  two_passes(
      lines, false,
      [&](int64_t line, int64_t count, int64_t begin, int64_t n, double* sums) {
        add_magnitudes(x + line * lines.length + begin, count, n, width, sums);
      },
      [&](int64_t unit, int64_t count, const double* sums) {
        for (int64_t u = unit; u < unit + count; ++u) {
          const double* of_unit = sums + (u - unit) * unit_rows;
          const double all = p.per_sample ? std::accumulate(of_unit, of_unit + unit_rows, 0.0) : 0;
          if (p.per_sample) mean[u] = A(all / std::max<int64_t>(channels * length, 1));
          for (int64_t r = 0; r < unit_rows; ++r) {
            const int64_t row = u * unit_rows + r;
            if (!p.per_sample) mean[row] = A(of_unit[r] / std::max<int64_t>(length, 1));
            tau[row] = relu(alpha[row] * mean[p.per_sample ? u : row]);
          }
        }
      },
      [&](int64_t line, int64_t count, int64_t begin, int64_t n) {
        shrink_lines(lines, line, count, begin, n, x, tau.data(), residual, y, mask);
      });
}

template <class T>
void shrink_backward_typed(const ShrinkBackward& p) {
  using A = accumulator_t<T>;
  const Lines lines(p.rows, p.per_sample);
  const LineMask mask(p.mask, lines, kShrinkPlanes);
  const int64_t samples = p.rows.samples, channels = p.rows.channels, length = p.rows.length, width = lines.width;
  const T* g = as<T>(p.grad);
  T* dx = as<T>(p.dx);
  const A* mean = as<A>(p.mean);
  const A* grad_mean = as<A>(p.grad_mean);
  const std::vector<A> alpha_of = each_row<A>(p.alpha, p.rows);
  std::vector<A> dalpha(alpha_of.size()), spread(alpha_of.size());
  const int64_t unit_rows = lines.per_unit * width;

  two_passes(
      lines, false,
      [&](int64_t line, int64_t count, int64_t begin, int64_t n, double* sums) {
        add_signed(g + line * lines.length + begin, mask.read(line, begin), count, n, width, sums);
      },
      [&](int64_t unit, int64_t count, const double* sums) {
        for (int64_t u = unit; u < unit + count; ++u) {
          double dmean = 0;
          for (int64_t r = 0; r < unit_rows; ++r) {
            const int64_t row = u * unit_rows + r;
            const A alpha = alpha_of[row];
            const A m = mean[p.per_sample ? u : row];
            // a negative threshold acted as 0
            const A dtau = alpha * m < A(0) ? A(0) : A(-sums[row - unit * unit_rows]);
            dalpha[row] = dtau * m;
            if (p.per_sample) {
              dmean += double(dtau) * alpha;
            } else {
              spread[row] = (dtau * alpha + (grad_mean ? grad_mean[row] : A(0))) / A(std::max<int64_t>(length, 1));
            }
          }
          if (p.per_sample) {
            if (grad_mean) dmean += grad_mean[u];
            std::fill_n(&spread[u * unit_rows], unit_rows, A(dmean / std::max<int64_t>(channels * length, 1)));
          }
        }
      },
      [&](int64_t line, int64_t count, int64_t begin, int64_t n) {
        if (dx) spread_lines(lines, line, count, begin, n, g, mask, spread.data(), dx);
      });

  if (!p.dalpha) return;
  const int64_t out_channels = p.alpha_per_channel ? channels : 1;
  std::vector<double> sums((p.alpha_per_sample ? samples : 1) * out_channels);
  for (int64_t row = 0; row < samples * channels; ++row) {
    const int64_t n = p.alpha_per_sample ? row / channels : 0, c = p.alpha_per_channel ? row % channels : 0;
    sums[n * out_channels + c] += dalpha[row];
  }
  std::copy(sums.begin(), sums.end(), as<A>(p.dalpha));
}

}  // namespace

void shrink(const Shrink& p) {
  with_type(p.dtype, [&](auto type) { shrink_typed<decltype(type)>(p); });
}

void shrink_backward(const ShrinkBackward& p) {
  with_type(p.dtype, [&](auto type) { shrink_backward_typed<decltype(type)>(p); });
}

}  // namespace drsn::cpu
