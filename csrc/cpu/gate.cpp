#include "gate.h"

#include <cmath>

#include "parallel.h"

namespace drsn::cpu {
namespace {

constexpr int64_t kSamples = 16;  // samples that lie side by side in a product
constexpr int64_t kTile = 128;    // rows of a product that are one task

template <class A>
A value(const void* values, int64_t i, A otherwise) {
  return values ? as<A>(values)[i] : otherwise;
}

// out(n, r) = sum over k of weight(r, k) * in(n, k) for samples [first, first + count). fill(sample, column) writes
// what goes in to column[k * kSamples]; take(sample, row, rows, sums) gets rows [row, row + rows) at sums[r *
// kSamples].
template <class A, class Fill, class Take>
void products(const A* weight, int64_t row_stride, int64_t term_stride, int64_t rows, int64_t terms, int64_t first,
              int64_t count, const Fill& fill, const Take& take) {
  const int64_t tiles = (rows + kTile - 1) / kTile, blocks = (count + kSamples - 1) / kSamples;
  for_each_task(blocks * tiles, kSamples * std::min(rows, kTile) * terms / 8, [&](int64_t task) {
    const int64_t sample = first + task / tiles * kSamples, samples = std::min(kSamples, first + count - sample);
    const int64_t row = task % tiles * kTile, tile = std::min(kTile, rows - row);
    thread_local std::vector<A> in, out;
    in.resize(terms * kSamples);
    out.resize(kTile * kSamples);
    for (int64_t j = 0; j < samples; ++j) fill(sample + j, &in[j]);
    multiply<A>({weight + row * row_stride, row_stride, term_stride, in.data(), kSamples, out.data(), kSamples, tile,
                 terms, samples});
    for (int64_t j = 0; j < samples; ++j) take(sample + j, row, tile, &out[j]);
  });
}

// Of the features of one sample.
template <class A>
void sample_statistics(const Norm& norm, const A* z, int64_t features, A* mean, A* rstd) {
  double sum = 0, squares = 0;
  for (int64_t h = 0; h < features && norm.kind == NormKind::kLayer; ++h) sum += z[h];
  const double center = sum / double(features);
  for (int64_t h = 0; h < features; ++h) squares += (z[h] - center) * (z[h] - center);
  *mean = A(center);
  *rstd = A(1 / std::sqrt(squares / double(features) + norm.eps));
}

bool over_sample(const Norm& norm) { return norm.kind == NormKind::kLayer || norm.kind == NormKind::kRms; }

template <class A>
void batch_statistics(const Norm& norm, const A* z, int64_t samples, int64_t features, A* mean, A* rstd) {
  const BatchStatistics<A> statistics(norm, samples);
  for_each_task((features + kTile - 1) / kTile, samples * std::min(features, kTile), [&](int64_t task) {
    const int64_t begin = task * kTile, n = std::min(kTile, features - begin);
    double sums[kTile] = {}, squares[kTile] = {};
    for (int64_t s = 0; s < samples; ++s) {
      for (int64_t h = 0; h < n; ++h) sums[h] += z[s * features + begin + h];
    }
    for (int64_t h = 0; h < n; ++h) sums[h] /= double(samples);
    for (int64_t s = 0; s < samples; ++s) {
      for (int64_t h = 0; h < n; ++h) {
        const double d = z[s * features + begin + h] - sums[h];
        squares[h] += d * d;
      }
    }
    for (int64_t h = 0; h < n; ++h)
      statistics.set(begin + h, sums[h], squares[h] / double(samples), mean + begin + h, rstd + begin + h);
  });
}

}  // namespace

template <class A>
void running_statistics(const Norm& norm, int64_t features, A* mean, A* rstd) {
  for (int64_t h = 0; h < features; ++h) {
    mean[h] = value(norm.running_mean, h, A(0));
    rstd[h] = A(1 / std::sqrt(double(value(norm.running_var, h, A(1))) + norm.eps));
  }
}

template <class A>
BatchStatistics<A>::BatchStatistics(const Norm& norm, int64_t samples) : norm_(norm), samples_(double(samples)) {
  if (norm.batches) ++*norm.batches;
  factor_ = norm.momentum < 0 && norm.batches ? 1 / double(*norm.batches) : norm.momentum;
}

template <class A>
void BatchStatistics<A>::set(int64_t feature, double mean, double variance, A* mean_out, A* rstd_out) const {
  *mean_out = A(mean);
  *rstd_out = A(1 / std::sqrt(variance + norm_.eps));
  if (!norm_.running_mean) return;
  const auto enter = [&](void* running, double now) {
    A& old = as<A>(running)[feature];
    old = A((1 - factor_) * old + factor_ * now);
  };
  enter(norm_.running_mean, mean);
  enter(norm_.running_var, variance * samples_ / (samples_ - 1));
}

template <class A>
void gate_forward(const Gate& gate, const Rows& rows, const A* mean, A* state, int64_t first, int64_t count) {
  const GateState at{rows.samples, gate.hidden, gate.outputs};
  const int64_t channels = rows.channels, hidden = gate.hidden, outputs = gate.outputs;
  A* z1 = state + at.hidden_at();
  A* alpha = state + at.alpha_at();
  A* norm_mean = state + at.norm_mean_at();
  A* norm_rstd = state + at.norm_rstd_at();

  products(
      as<A>(gate.w1), channels, int64_t(1), hidden, channels, first, count,
      [&](int64_t n, A* column) {
        for (int64_t c = 0; c < channels; ++c) column[c * kSamples] = mean[n * channels + c];
      },
      [&](int64_t n, int64_t row, int64_t tile, const A* sums) {
        for (int64_t h = row; h < row + tile; ++h)
          z1[n * hidden + h] = sums[(h - row) * kSamples] + value(gate.b1, h, A(0));
      });
  if (gate.norm.kind == NormKind::kBatch) batch_statistics(gate.norm, z1, rows.samples, hidden, norm_mean, norm_rstd);

  const bool normalises = gate.norm.kind != NormKind::kNone;
  products(
      as<A>(gate.w2), hidden, int64_t(1), outputs, hidden, first, count,
      [&](int64_t n, A* column) {
        const A* z = z1 + n * hidden;
        A center = 0, scale = 1;
        if (over_sample(gate.norm)) sample_statistics(gate.norm, z, hidden, &center, &scale);
        for (int64_t h = 0; h < hidden; ++h) {
          A v = z[h];
          if (normalises) {
            const bool own = over_sample(gate.norm);
            v = (v - (own ? center : norm_mean[h])) * (own ? scale : norm_rstd[h]);
            v = v * value(gate.norm.weight, h, A(1)) + value(gate.norm.bias, h, A(0));
          }
          column[h * kSamples] = relu(v);
        }
      },
      [&](int64_t n, int64_t row, int64_t tile, const A* sums) {
        for (int64_t k = row; k < row + tile; ++k) {
          const A z = sums[(k - row) * kSamples] + value(gate.b2, k, A(0));
          alpha[n * outputs + k] = A(1) / (A(1) + std::exp(-z));
        }
      });
}

template <class A>
GateBackward<A>::GateBackward(const Gate& gate, const Rows& rows, const A* mean, const A* state)
    : gate_(gate),
      samples_(rows.samples),
      channels_(rows.channels),
      hidden_(gate.hidden),
      outputs_(gate.outputs),
      mean_(mean),
      activation_(samples_ * hidden_),
      dhidden_(samples_ * hidden_),
      dz1_(samples_ * hidden_),
      dz2_(samples_ * outputs_) {
  const GateState at{samples_, hidden_, outputs_};
  z1_ = state + at.hidden_at();
  alpha_ = state + at.alpha_at();
  norm_mean_ = state + at.norm_mean_at();
  norm_rstd_ = state + at.norm_rstd_at();
  if (over_sample(gate.norm)) {
    sample_mean_.resize(samples_);
    sample_rstd_.resize(samples_);
  }
}

template <class A>
A GateBackward<A>::x_hat(int64_t sample, int64_t feature) const {
  const A z = z1_[sample * hidden_ + feature];
  if (gate_.norm.kind == NormKind::kNone) return z;
  return over_sample(gate_.norm) ? (z - sample_mean_[sample]) * sample_rstd_[sample]
                                 : (z - norm_mean_[feature]) * norm_rstd_[feature];
}

template <class A>
void GateBackward<A>::run(int64_t first, int64_t count, const A* dalpha, A* dmean) {
  const Norm& norm = gate_.norm;
  for (int64_t n = first; n < first + count; ++n) {
    for (int64_t k = 0; k < outputs_; ++k) {
      const A alpha = alpha_[n * outputs_ + k];
      dz2_[n * outputs_ + k] = dalpha[(n - first) * outputs_ + k] * alpha * (A(1) - alpha);
    }
    if (over_sample(norm)) sample_statistics(norm, z1_ + n * hidden_, hidden_, &sample_mean_[n], &sample_rstd_[n]);
  }
  products(
      as<A>(gate_.w2), int64_t(1), hidden_, hidden_, outputs_, first, count,
      [&](int64_t n, A* column) {
        for (int64_t k = 0; k < outputs_; ++k) column[k * kSamples] = dz2_[n * outputs_ + k];
      },
      [&](int64_t n, int64_t row, int64_t tile, const A* sums) {
        for (int64_t h = row; h < row + tile; ++h) {
          A v = x_hat(n, h);
          if (norm.kind != NormKind::kNone) v = v * value(norm.weight, h, A(1)) + value(norm.bias, h, A(0));
          const A passed = v <= A(0) ? A(0) : sums[(h - row) * kSamples];
          activation_[n * hidden_ + h] = relu(v);
          dhidden_[n * hidden_ + h] = passed;
        }
      });
  backward_of_norm(first, count);
  products(
      as<A>(gate_.w1), int64_t(1), channels_, channels_, hidden_, first, count,
      [&](int64_t n, A* column) {
        for (int64_t h = 0; h < hidden_; ++h) column[h * kSamples] = dz1_[n * hidden_ + h];
      },
      [&](int64_t n, int64_t row, int64_t tile, const A* sums) {
        for (int64_t c = row; c < row + tile; ++c) dmean[(n - first) * channels_ + c] = sums[(c - row) * kSamples];
      });
}

// dz1 = rstd * (d - average(d) - x_hat * average(d * x_hat)) with d the gradient of x_hat; over running statistics the
// averages are constants and drop out, and kRms has no mean.
template <class A>
void GateBackward<A>::backward_of_norm(int64_t first, int64_t count) {
  const Norm& norm = gate_.norm;
  const auto of_x_hat = [&](int64_t n, int64_t h) { return dhidden_[n * hidden_ + h] * value(norm.weight, h, A(1)); };
  if (norm.kind == NormKind::kBatch) {
    for_each_task((hidden_ + kTile - 1) / kTile, count * std::min(hidden_, kTile), [&](int64_t task) {
      const int64_t begin = task * kTile, end = std::min(begin + kTile, hidden_);
      double sums[kTile] = {}, products[kTile] = {};
      for (int64_t n = first; n < first + count; ++n) {
        for (int64_t h = begin; h < end; ++h) {
          sums[h - begin] += of_x_hat(n, h);
          products[h - begin] += double(of_x_hat(n, h)) * x_hat(n, h);
        }
      }
      for (int64_t n = first; n < first + count; ++n) {
        for (int64_t h = begin; h < end; ++h) {
          const A average = A(sums[h - begin] / double(count)), slope = A(products[h - begin] / double(count));
          dz1_[n * hidden_ + h] = norm_rstd_[h] * (of_x_hat(n, h) - average - x_hat(n, h) * slope);
        }
      }
    });
    return;
  }
  for (int64_t n = first; n < first + count; ++n) {
    double sum = 0, product = 0;
    for (int64_t h = 0; h < hidden_ && over_sample(norm); ++h) {
      if (norm.kind == NormKind::kLayer) sum += of_x_hat(n, h);
      product += double(of_x_hat(n, h)) * x_hat(n, h);
    }
    const A average = A(sum / double(hidden_)), slope = A(product / double(hidden_));
    for (int64_t h = 0; h < hidden_; ++h) {
      const A d = of_x_hat(n, h);
      A& out = dz1_[n * hidden_ + h];
      if (over_sample(norm)) {
        out = sample_rstd_[n] * (d - average - x_hat(n, h) * slope);
      } else {
        out = norm.kind == NormKind::kRunning ? d * norm_rstd_[h] : d;
      }
    }
  }
}

template <class A>
void GateBackward<A>::parameters(A* dw1, A* db1, A* dnorm_weight, A* dnorm_bias, A* dw2, A* db2) const {
  // out[r, j] = sum over the samples of d[n, r] * in[n, j]
  const auto weight = [&](const std::vector<A>& d, int64_t rows, const A* in, int64_t columns, A* out) {
    if (!out) return;
    for_each_task((rows + kTile - 1) / kTile, std::min(rows, kTile) * columns * samples_ / 8, [&](int64_t task) {
      const int64_t row = task * kTile, tile = std::min(kTile, rows - row);
      multiply<A>({&d[row], 1, rows, in, columns, out + row * columns, columns, tile, samples_, columns});
    });
  };
  const auto sum = [&](int64_t features, A* out, const auto& term) {
    if (!out) return;
    std::vector<double> sums(features);
    for (int64_t n = 0; n < samples_; ++n) {
      for (int64_t h = 0; h < features; ++h) sums[h] += term(n, h);
    }
    std::copy(sums.begin(), sums.end(), out);
  };
  weight(dz1_, hidden_, mean_, channels_, dw1);
  weight(dz2_, outputs_, activation_.data(), hidden_, dw2);
  sum(hidden_, db1, [&](int64_t n, int64_t h) { return dz1_[n * hidden_ + h]; });
  sum(outputs_, db2, [&](int64_t n, int64_t k) { return dz2_[n * outputs_ + k]; });
  sum(hidden_, dnorm_bias, [&](int64_t n, int64_t h) { return dhidden_[n * hidden_ + h]; });
  sum(hidden_, dnorm_weight, [&](int64_t n, int64_t h) { return dhidden_[n * hidden_ + h] * x_hat(n, h); });
}

#define DRSN_INSTANTIATE(A)                                                             \
  template void running_statistics(const Norm&, int64_t, A*, A*);                       \
  template void gate_forward(const Gate&, const Rows&, const A*, A*, int64_t, int64_t); \
  template class BatchStatistics<A>;                                                    \
  template class GateBackward<A>;
DRSN_INSTANTIATE(float)
DRSN_INSTANTIATE(double)

}  // namespace drsn::cpu
