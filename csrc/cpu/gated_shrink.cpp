// abs-mean, gate, threshold, soft threshold and residual. Where the gate couples no samples, some of them go through
// all of it while they are in a thread's cache.
#include <numeric>

#include "backend.h"
#include "gate.h"
#include "parallel.h"

namespace drsn::cpu {
namespace {

constexpr int64_t kCachedSamples = 65536;  // elements of samples that stay in a thread's second-level cache

// A unit is a sample. A gate costs as much for sixteen samples as for one: where it outweighs them, as many go
// together.
Lines lines_of_samples(const Rows& rows, const Gate& gate) {
  Lines lines(rows, true);
  const int64_t heavy = gate.hidden > rows.length / 8 ? 16 * rows.channels * rows.length : 0;
  lines.cached = std::max(kCachedSamples, heavy);
  return lines;
}

// Calls run(row, index, statistic) for the rows of some samples, with what alpha[index] is multiplied by: the row's
// mean, or the average of the sample's.
template <class A, class Run>
void for_each_row(const Rows& rows, const Gate& gate, const A* mean, bool per_sample, int64_t first, int64_t count,
                  const Run& run) {
  for (int64_t n = first; n < first + count; ++n) {
    const A* of_sample = mean + n * rows.channels;
    const A shared =
        per_sample ? A(std::accumulate(of_sample, of_sample + rows.channels, 0.0) / double(rows.channels)) : A(0);
    for (int64_t c = 0; c < rows.channels; ++c)
      run(n * rows.channels + c, gate.outputs == 1 ? n : n * rows.channels + c, per_sample ? shared : of_sample[c]);
  }
}

template <class A>
void set_thresholds(const Rows& rows, const Gate& gate, const A* mean, const A* state, bool per_sample, int64_t first,
                    int64_t count, A* tau) {
  const A* alpha = state + GateState{rows.samples, gate.hidden, gate.outputs}.alpha_at();
  for_each_row(rows, gate, mean, per_sample, first, count,
               [&](int64_t row, int64_t k, A s) { tau[row] = relu(alpha[k] * s); });
}

// The input's normalisation as numbers of each row; nothing where there is none.
template <class A>
struct InputNorm {
  std::vector<A> center, scale, bias;

  InputNorm(const Norm& norm, const Rows& rows, const A* state) {
    if (norm.kind == NormKind::kNone) return;
    const A* mean = state;
    const A* rstd = state + rows.channels;
    for (int64_t n = 0; n < rows.samples; ++n) {
      for (int64_t c = 0; c < rows.channels; ++c) {
        center.push_back(mean[c]);
        scale.push_back((norm.weight ? as<A>(norm.weight)[c] : A(1)) * rstd[c]);
        bias.push_back(norm.bias ? as<A>(norm.bias)[c] : A(0));
      }
    }
  }

  Affine<A> from(int64_t row) const {
    if (scale.empty()) return {};
    return {&center[row], &scale[row], &bias[row]};
  }
};

// Mean and 1 / sqrt(variance + eps) of every channel of z.
template <class T>
void input_statistics(const Norm& norm, const Rows& rows, const T* z, accumulator_t<T>* state) {
  using A = accumulator_t<T>;
  A* mean = state;
  A* rstd = state + rows.channels;
  if (norm.kind == NormKind::kRunning) return running_statistics(norm, rows.channels, mean, rstd);
  std::vector<double> sums(rows.samples * rows.channels), squares(sums.size());
  for_each_task(int64_t(sums.size()), rows.length, [&](int64_t row) {
    loops<T>().moments(z + row * rows.length, rows.length, &sums[row], &squares[row]);
  });
  const BatchStatistics<A> statistics(norm, rows.samples * rows.length);
  for (int64_t c = 0; c < rows.channels; ++c) {
    double sum = 0, all = 0;
    for (int64_t n = 0; n < rows.samples; ++n) sum += sums[n * rows.channels + c];
    const double center = sum / double(rows.samples * rows.length);
    for (int64_t n = 0; n < rows.samples; ++n) {
      const double d = sums[n * rows.channels + c] / double(rows.length) - center;
      all += squares[n * rows.channels + c] + d * d * double(rows.length);
    }
    statistics.set(c, center, all / double(rows.samples * rows.length), mean + c, rstd + c);
  }
}

template <class T>
void gated_shrink_typed(const BatchNormShrink& p) {
  using A = accumulator_t<T>;
  const Rows& rows = p.rows;
  const Lines lines = lines_of_samples(rows, p.gate);
  const LineMask mask(p.mask, lines, kShrinkPlanes);
  const T* x = as<T>(p.x);
  const T* residual = as<T>(p.residual);
  T* y = as<T>(p.y);
  A* mean = as<A>(p.mean);
  A* state = as<A>(p.state);
  const GateState at{rows.samples, p.gate.hidden, p.gate.outputs};
  std::vector<A> tau(rows.samples * rows.channels);

  if (p.gate.norm.kind == NormKind::kRunning)
    running_statistics(p.gate.norm, at.hidden, state + at.norm_mean_at(), state + at.norm_rstd_at());
  if (p.input.kind != NormKind::kNone) input_statistics(p.input, rows, x, as<A>(p.input_state));
  const InputNorm<A> input(p.input, rows, as<A>(p.input_state));

  two_passes(
      lines, p.gate.norm.kind == NormKind::kBatch,
      [&](int64_t line, int64_t count, int64_t begin, int64_t n, double* sums) {
        const T* from = x + line * lines.length + begin;
        if (p.input.kind == NormKind::kNone) return add_magnitudes(from, count, n, lines.width, sums);
        loops<T>().abs_sums(from, input.from(line), count, n, sums);
      },
      [&](int64_t sample, int64_t count, const double* sums) {
        const int64_t first = sample * rows.channels;
        for (int64_t r = 0; r < count * rows.channels; ++r) mean[first + r] = A(sums[r] / double(rows.length));
        gate_forward(p.gate, rows, mean, state, sample, count);
        set_thresholds(rows, p.gate, mean, state, p.per_sample, sample, count, tau.data());
      },
      [&](int64_t line, int64_t count, int64_t begin, int64_t n) {
        if (p.input.kind == NormKind::kNone)
          return shrink_lines(lines, line, count, begin, n, x, tau.data(), residual, y, mask);
        const int64_t offset = line * lines.length + begin;
        loops<T>().shrink_rows(x + offset, input.from(line), &tau[line], residual ? residual + offset : nullptr,
                               y + offset, {}, count, n);
      });
}

// The way back from the gradients of the thresholds: through statistic and gate to the gradients of the means, which
// spread along sign(x).
template <class A>
class ThresholdBackward {
 public:
  std::vector<A> spread;  // a number a row

  explicit ThresholdBackward(const GatedShrinkBackward& p)
      : spread(p.rows.samples * p.rows.channels),
        p_(p),
        gate_(p.gate, p.rows, as<A>(p.mean), as<A>(p.state)),
        alpha_(as<A>(p.state) + GateState{p.rows.samples, p.gate.hidden, p.gate.outputs}.alpha_at()) {}

  // sums(row) is that of active * sign * g over a row of the samples [first, first + count).
  template <class Sums>
  void run(int64_t first, int64_t count, const Sums& sums) {
    const Rows& rows = p_.rows;
    const A* mean = as<A>(p_.mean);
    std::vector<A> dalpha(count * p_.gate.outputs), dmean(count * rows.channels), direct(count * rows.channels);
    const int64_t first_row = first * rows.channels;
    const int64_t first_alpha = first * p_.gate.outputs;
    for_each_row(rows, p_.gate, mean, p_.per_sample, first, count, [&](int64_t row, int64_t k, A s) {
      const A dtau = A(-sums(row));
      dalpha[k - first_alpha] += dtau * s;
      direct[row - first_row] = dtau * alpha_[k];
    });
    if (p_.per_sample) {
      for (int64_t n = 0; n < count; ++n) {
        const auto begin = direct.begin() + n * rows.channels, end = begin + rows.channels;
        std::fill(begin, end, A(std::accumulate(begin, end, 0.0) / double(rows.channels)));
      }
    }
    gate_.run(first, count, dalpha.data(), dmean.data());
    const A* grad_mean = as<A>(p_.grad_mean);
    for (int64_t r = 0; r < count * rows.channels; ++r) {
      const A outer = grad_mean ? grad_mean[first_row + r] : A(0);
      spread[first_row + r] = (dmean[r] + direct[r] + outer) / A(rows.length);
    }
  }

  void parameters() const {
    gate_.parameters(as<A>(p_.dw1), as<A>(p_.db1), as<A>(p_.dnorm_weight), as<A>(p_.dnorm_bias), as<A>(p_.dw2),
                     as<A>(p_.db2));
  }

 private:
  const GatedShrinkBackward& p_;
  GateBackward<A> gate_;
  const A* alpha_;
};

template <class T>
void backward_from_mask(const GatedShrinkBackward& p) {
  using A = accumulator_t<T>;
  const Lines lines = lines_of_samples(p.rows, p.gate);
  const LineMask mask(p.mask, lines, kShrinkPlanes);
  const T* g = as<T>(p.grad);
  T* dx = as<T>(p.dx);
  ThresholdBackward<A> thresholds(p);
  two_passes(
      lines, p.gate.norm.kind == NormKind::kBatch,
      [&](int64_t line, int64_t count, int64_t begin, int64_t n, double* sums) {
        add_signed(g + line * lines.length + begin, mask.read(line, begin), count, n, lines.width, sums);
      },
      [&](int64_t sample, int64_t count, const double* sums) {
        const int64_t first = sample * p.rows.channels;
        thresholds.run(sample, count, [&](int64_t row) { return sums[row - first]; });
      },
      [&](int64_t line, int64_t count, int64_t begin, int64_t n) {
        if (dx) spread_lines(lines, line, count, begin, n, g, mask, thresholds.spread.data(), dx);
      });
  thresholds.parameters();
}

template <class T>
void backward_from_input(const BatchNormShrinkBackward& p) {
  using A = accumulator_t<T>;
  constexpr int kSums = 5;
  const Rows& rows = p.rows;
  const auto& loop = loops<T>();
  Lines lines = lines_of_samples(rows, p.gate);
  lines.sums = kSums;
  const T* g = as<T>(p.grad);
  const T* z = as<T>(p.z);
  T* dz = as<T>(p.dx);
  const A* rstd = as<A>(p.input_state) + rows.channels;
  const InputNorm<A> input(p.input, rows, as<A>(p.input_state));
  std::vector<A> tau(rows.samples * rows.channels);
  set_thresholds(rows, p.gate, as<A>(p.mean), as<A>(p.state), p.per_sample, 0, rows.samples, tau.data());
  std::vector<A> at_center(tau.size()), slope(tau.size());
  std::vector<double> dweight(rows.channels), dbias(rows.channels), weight_rows(tau.size()), bias_rows(tau.size());
  ThresholdBackward<A> backward(p);
  const auto rows_from = [&](int64_t row) {
    return BatchNormRows<A>{input.from(row), &tau[row], &backward.spread[row], &at_center[row], &slope[row]};
  };
  const auto add_rows = [&] {
    for (size_t row = 0; row < tau.size(); ++row) {
      dweight[row % rows.channels] += weight_rows[row];
      dbias[row % rows.channels] += bias_rows[row];
    }
  };
  const bool coupled = p.input.kind == NormKind::kBatch;
  two_passes(
      lines, coupled || p.gate.norm.kind == NormKind::kBatch,
      [&](int64_t line, int64_t count, int64_t begin, int64_t n, double* sums) {
        const int64_t offset = line * lines.length + begin;
        loop.batch_norm_sums(g + offset, z + offset, rows_from(line), count, n, sums);
      },
      [&](int64_t sample, int64_t count, const double* sums) {
        const int64_t first = sample * rows.channels;
        backward.run(sample, count, [&](int64_t row) { return sums[kSums * (row - first)]; });
        for (int64_t row = first; row < first + count * rows.channels; ++row) {
          const double* of_row = sums + kSums * (row - first);
          weight_rows[row] = (of_row[2] + backward.spread[row] * of_row[4]) * rstd[row % rows.channels];
          bias_rows[row] = of_row[1] + backward.spread[row] * of_row[3];
        }
        if (!coupled) return;
        add_rows();
        const double elements = double(rows.samples * rows.length);
        for (size_t row = 0; row < tau.size(); ++row) {
          const size_t c = row % rows.channels;
          at_center[row] = A(-input.scale[row] * dbias[c] / elements);
          slope[row] = A(-input.scale[row] * dweight[c] * rstd[c] / elements);
        }
      },
      [&](int64_t line, int64_t count, int64_t begin, int64_t n) {
        const int64_t offset = line * lines.length + begin;
        if (dz) loop.batch_norm_spread(g + offset, z + offset, rows_from(line), dz + offset, count, n);
      });
  if (!coupled) add_rows();
  if (p.dinput_weight) std::copy(dweight.begin(), dweight.end(), as<A>(p.dinput_weight));
  if (p.dinput_bias) std::copy(dbias.begin(), dbias.end(), as<A>(p.dinput_bias));
  backward.parameters();
}

}  // namespace

void gated_shrink(const GatedShrink& p) { batch_norm_shrink({p, {}, nullptr}); }

void gated_shrink_backward(const GatedShrinkBackward& p) {
  with_type(p.dtype, [&](auto type) { backward_from_mask<decltype(type)>(p); });
}

void batch_norm_shrink(const BatchNormShrink& p) {
  with_type(p.dtype, [&](auto type) { gated_shrink_typed<decltype(type)>(p); });
}

void batch_norm_shrink_backward(const BatchNormShrinkBackward& p) {
  with_type(p.dtype, [&](auto type) { backward_from_input<decltype(type)>(p); });
}

}  // namespace drsn::cpu
