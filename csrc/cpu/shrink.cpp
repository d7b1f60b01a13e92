// tau = alpha * mean|x|, soft threshold and residual. A group, a row or a sample (per_sample, channels_last), goes
// through both passes at once, in the cache if it fits.
#include "backend.h"
#include "lines.h"

namespace drsn::cpu {
namespace {

template <class T>
void forward(const Shrink& p) {
  using A = accumulator_t<T>;
  const Lines lines(p.rows, p.per_sample);
  const Segments mask(p.mask, lines, kShrinkPlanes);
  const T* x = as<T>(p.x);
  A* mean = as<A>(p.mean);
  const std::vector<A> alpha = each_row<A>(p.alpha, p.rows);
  std::vector<A> tau(alpha.size());
  two_passes(
      lines, false, [&](const Range& at, double* sums) { add_abs_sums(lines, at, x, sums); },
      [&](int64_t group, int64_t count, const double* sums) {
        set_means(p.rows, lines, p.per_sample, group, count, sums, mean);
        const int64_t n = lines.rows_per_group();
        for (int64_t row = group * n; row < (group + count) * n; ++row)
          tau[row] = relu(alpha[row] * mean[p.per_sample ? row / n : row]);
      },
      [&](const Range& at) { shrink_lines(lines, at, x, tau.data(), as<T>(p.residual), as<T>(p.y), mask); });
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
  const std::vector<A> alpha_of = each_row<A>(p.alpha, p.rows);
  std::vector<A> dalpha(alpha_of.size()), share(alpha_of.size());
  two_passes(
      lines, false, [&](const Range& at, double* sums) { add_active_sums(lines, at, g, mask, sums); },
      [&](int64_t group, int64_t count, const double* sums) {
        const int64_t n = lines.rows_per_group();
        for (int64_t u = group; u < group + count; ++u) {
          double dmean = 0;
          for (int64_t row = u * n; row < (u + 1) * n; ++row) {
            const A alpha = alpha_of[row], m = mean[p.per_sample ? u : row];
            // a negative threshold acted as 0
            const A dtau = alpha * m < A(0) ? A(0) : A(-sums[row - group * n]);
            dalpha[row] = dtau * m;
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
        if (dx) combine_lines(lines, at, g, mask, share.data(), dx);
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
  with_type(p.dtype, [&](auto type) { forward<decltype(type)>(p); });
}

void shrink_backward(const ShrinkBackward& p) {
  with_type(p.dtype, [&](auto type) { backward<decltype(type)>(p); });
}

}  // namespace drsn::cpu
