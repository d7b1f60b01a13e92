// tau = alpha * mean|x|, soft threshold and residual: a unit is summed and shrunk while it is in the cache.
#include "operators.h"
#include "parallel.h"

namespace drsn::cpu {
namespace {

template <class T>
void shrink_typed(const Shrink& p) {
  using A = accumulator_t<T>;
  const auto& k = kernels<T>();
  const Lines lines(p.rows, p.per_sample);
  const LineCode code(p.code, lines, kShrinkPlanes);
  const int64_t channels = p.rows.channels, length = p.rows.length, width = lines.width;
  const T* x = as<T>(p.x);
  const T* residual = as<T>(p.residual);
  T* y = as<T>(p.y);
  A* mean = as<A>(p.mean);
  const std::vector<A> alpha = each_row<A>(p.alpha, p.rows);
  std::vector<A> tau(alpha.size());
  const int64_t unit_rows = lines.per_unit * width;

  two_passes(
      lines,
      [&](int64_t line, int64_t begin, int64_t n, double* sums) {
        add_magnitudes(x + line * lines.length + begin, n, width, sums);
      },
      [&](int64_t unit, const double* sums) {
        const auto set = [&](int64_t row, A m) { tau[row] = relu(alpha[row] * m); };
        const int64_t first = unit * unit_rows;
        if (p.per_sample) {
          double sum = 0;
          for (int64_t r = 0; r < unit_rows; ++r) sum += sums[r];
          const A m = mean[unit] = A(sum / std::max<int64_t>(channels * length, 1));
          for (int64_t r = 0; r < unit_rows; ++r) set(first + r, m);
        } else {
          for (int64_t r = 0; r < unit_rows; ++r)
            set(first + r, mean[first + r] = A(sums[r] / std::max<int64_t>(length, 1)));
        }
      },
      [&](int64_t line, int64_t begin, int64_t n) {
        const int64_t offset = line * lines.length;
        const AlongLine<A> along(tau.data(), line, width);
        along.for_each(begin, n, [&](int64_t i, int64_t count) {
          k.shrink(x + offset + i, along.at(i), residual ? residual + offset + i : nullptr, y + offset + i,
                   code.write(line, i), count);
        });
      });
}

template <class T>
void shrink_backward_typed(const ShrinkBackward& p) {
  using A = accumulator_t<T>;
  const auto& k = kernels<T>();
  const Lines lines(p.rows, p.per_sample);
  const LineCode code(p.code, lines, kShrinkPlanes);
  const int64_t samples = p.rows.samples, channels = p.rows.channels, length = p.rows.length, width = lines.width;
  const T* g = as<T>(p.grad);
  T* dx = as<T>(p.dx);
  const A* mean = as<A>(p.mean);
  const A* grad_mean = as<A>(p.grad_mean);
  const std::vector<A> alpha_of = each_row<A>(p.alpha, p.rows);
  std::vector<A> dalpha(alpha_of.size()), spread(alpha_of.size());
  const int64_t unit_rows = lines.per_unit * width;

  two_passes(
      lines,
      [&](int64_t line, int64_t begin, int64_t n, double* sums) {
        add_signed(g + line * lines.length + begin, code.read(line, begin), n, width, sums);
      },
      [&](int64_t unit, const double* sums) {
        const int64_t first = unit * unit_rows;
        double dmean = 0;
        for (int64_t r = 0; r < unit_rows; ++r) {
          const int64_t row = first + r;
          const A alpha = alpha_of[row];
          const A m = mean[p.per_sample ? unit : row];
          const A dtau = alpha * m < A(0) ? A(0) : A(-sums[r]);  // a negative threshold acted as 0
          dalpha[row] = dtau * m;
          if (p.per_sample) {
            dmean += double(dtau) * alpha;
          } else {
            spread[row] = (dtau * alpha + (grad_mean ? grad_mean[row] : A(0))) / A(std::max<int64_t>(length, 1));
          }
        }
        if (p.per_sample) {
          if (grad_mean) dmean += grad_mean[unit];
          const A share = A(dmean / std::max<int64_t>(channels * length, 1));
          for (int64_t r = 0; r < unit_rows; ++r) spread[first + r] = share;
        }
      },
      [&](int64_t line, int64_t begin, int64_t n) {
        if (!dx) return;
        const int64_t offset = line * lines.length;
        const AlongLine<A> along(spread.data(), line, width);
        along.for_each(begin, n, [&](int64_t i, int64_t count) {
          k.combine(g + offset + i, code.read(line, i), {}, along.at(i), dx + offset + i, count);
        });
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
