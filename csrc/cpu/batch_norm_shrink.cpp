// gated_shrink of x = norm(z), where x is never in memory: z is read for the statistics of its channels, for the means
// of |x| and for the result; backward for five sums of each row, then for dz.
#include "backend.h"
#include "gate.h"

namespace drsn::cpu {
namespace {

// The input's normalisation as numbers of each row.
template <class A>
struct InputNorm {
  std::vector<A> center, scale, bias;

  InputNorm(const Norm& norm, const Rows& rows, const A* state) {
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

  Affine<A> from(int64_t row) const { return {&center[row], &scale[row], &bias[row]}; }
};

// Writes mean and 1 / sqrt(variance + eps) of every channel of z to `state`.
template <class T>
void set_statistics(const Norm& norm, const Rows& rows, const T* z, accumulator_t<T>* state) {
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
void forward(const BatchNormShrink& p) {
  using A = accumulator_t<T>;
  const auto& loop = loops<T>();
  const Lines lines = lines_of_samples(p.rows, p.gate);
  const T* z = as<T>(p.x);
  const T* residual = as<T>(p.residual);
  set_statistics(p.input, p.rows, z, as<A>(p.input_state));
  const InputNorm<A> input(p.input, p.rows, as<A>(p.input_state));
  GateForward<A> gate(p);
  two_passes(
      lines, p.gate.norm.kind == NormKind::kBatch,
      [&](const Range& at, double* sums) {
        loop.abs_sum_rows(z + lines.offset(at), input.from(at.line), at.count, at.n, sums);
      },
      [&](int64_t sample, int64_t count, const double* sums) { gate.run(sample, count, sums); },
      [&](const Range& at) {
        const int64_t offset = lines.offset(at);
        loop.shrink_rows(z + offset, input.from(at.line), &gate.tau[at.line], residual ? residual + offset : nullptr,
                         as<T>(p.y) + offset, {}, at.count, at.n);
      });
}

template <class T>
void backward(const BatchNormShrinkBackward& p) {
  using A = accumulator_t<T>;
  constexpr int kSums = 5;
  const auto& loop = loops<T>();
  const Rows& rows = p.rows;
  Lines lines = lines_of_samples(rows, p.gate);
  lines.sums = kSums;
  const T* g = as<T>(p.grad);
  const T* z = as<T>(p.z);
  const A* rstd = as<A>(p.input_state) + rows.channels;
  const InputNorm<A> input(p.input, rows, as<A>(p.input_state));
  GateBackward<A> gate(p);
  const std::vector<A> tau = gate.thresholds();
  std::vector<A> at_center(tau.size()), slope(tau.size());
  std::vector<double> dweight(rows.channels), dbias(rows.channels), weight_rows(tau.size()), bias_rows(tau.size());
  const auto rows_from = [&](int64_t row) {
    return BatchNormRows<A>{input.from(row), &tau[row], &gate.share[row], &at_center[row], &slope[row]};
  };
  const auto add_rows = [&] {
    for (size_t row = 0; row < tau.size(); ++row) {
      dweight[row % rows.channels] += weight_rows[row];
      dbias[row % rows.channels] += bias_rows[row];
    }
  };
  const bool over_batch = p.input.kind == NormKind::kBatch;
  two_passes(
      lines, over_batch || p.gate.norm.kind == NormKind::kBatch,
      [&](const Range& at, double* sums) {
        const int64_t offset = lines.offset(at);
        loop.batch_norm_sums(g + offset, z + offset, rows_from(at.line), at.count, at.n, sums);
      },
      [&](int64_t sample, int64_t count, const double* sums) {
        const int64_t first = sample * rows.channels;
        gate.run(sample, count, sums, kSums);
        for (int64_t row = first; row < first + count * rows.channels; ++row) {
          const double* of_row = sums + kSums * (row - first);
          weight_rows[row] = (of_row[2] + gate.share[row] * of_row[4]) * rstd[row % rows.channels];
          bias_rows[row] = of_row[1] + gate.share[row] * of_row[3];
        }
        if (!over_batch) return;
        add_rows();
        const double elements = double(rows.samples * rows.length);
        for (size_t row = 0; row < tau.size(); ++row) {
          const size_t c = row % rows.channels;
          at_center[row] = A(-input.scale[row] * dbias[c] / elements);
          slope[row] = A(-input.scale[row] * dweight[c] * rstd[c] / elements);
        }
      },
      [&](const Range& at) {
        const int64_t offset = lines.offset(at);
        if (p.dx)
          loop.batch_norm_combine(g + offset, z + offset, rows_from(at.line), as<T>(p.dx) + offset, at.count, at.n);
      });
  if (!over_batch) add_rows();
  if (p.dinput_weight) std::copy(dweight.begin(), dweight.end(), as<A>(p.dinput_weight));
  if (p.dinput_bias) std::copy(dbias.begin(), dbias.end(), as<A>(p.dinput_bias));
  gate.write_parameters();
}

}  // namespace

void batch_norm_shrink(const BatchNormShrink& p) {
  with_type(p.dtype, [&](auto type) { forward<decltype(type)>(p); });
}

void batch_norm_shrink_backward(const BatchNormShrinkBackward& p) {
  with_type(p.dtype, [&](auto type) { backward<decltype(type)>(p); });
}

}  // namespace drsn::cpu
