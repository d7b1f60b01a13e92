// The gate's formulas, once for samples in a thread's cache and for a whole batch.
#include "gate.h"

#include <cmath>

namespace drsn::cpu {
namespace {

constexpr int64_t kSamples = 16;           // samples that lie side by side in a product
constexpr int64_t kTile = 128;             // features, or rows of a product, that are one task
constexpr int64_t kCachedSamples = 65536;  // elements of samples that stay in a thread's second-level cache

template <class A>
std::vector<A> values_or(const void* values, int64_t n, A otherwise) {
  return values ? std::vector<A>(as<A>(values), as<A>(values) + n) : std::vector<A>(n, otherwise);
}

// out(n, r) = sum over k of weight(r, k) * in(n, k) for `count` samples; `in` is (count, terms). take(n, row, rows,
// sums) gets rows [row, row + rows) of sample n at sums[r * kSamples].
template <class A, class Take>
void multiply_samples(const A* weight, int64_t row_stride, int64_t term_stride, int64_t rows, int64_t terms,
                      const A* in, int64_t count, const Take& take) {
  const int64_t products = ceil_div(count, kSamples);
  // Rows are split where the samples alone would leave threads idle.
  const int64_t wanted = ceil_div(2 * torch::stable::get_num_threads(), products);
  const int64_t tile = std::max(kTile, ceil_div(rows, wanted)), tiles = ceil_div(rows, tile);
  for_each_task(products * tiles, kSamples * std::min(rows, tile) * terms / 8, [&](int64_t task) {
    const int64_t sample = task / tiles * kSamples, samples = std::min(kSamples, count - sample);
    const int64_t row = task % tiles * tile, n = std::min(tile, rows - row);
    thread_local std::vector<A> columns, sums;
    columns.resize(terms * kSamples);
    sums.resize(n * kSamples);
    for (int64_t j = 0; j < samples; ++j) {
      for (int64_t k = 0; k < terms; ++k) columns[k * kSamples + j] = in[(sample + j) * terms + k];
    }
    multiply<A>({weight + row * row_stride, row_stride, term_stride, columns.data(), kSamples, sums.data(), kSamples, n,
                 terms, samples});
    for (int64_t j = 0; j < samples; ++j) take(sample + j, row, n, &sums[j]);
  });
}

bool over_sample(const Norm& norm) { return norm.kind == NormKind::kLayer || norm.kind == NormKind::kRms; }

template <class A>
void batch_statistics(const Norm& norm, const A* z, int64_t samples, int64_t features, A* mean, A* rstd) {
  const BatchStatistics<A> statistics(norm, samples);
  for_each_range(features, kTile, samples, [&](int64_t begin, int64_t n) {
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

// Writes x_hat of `count` samples from z, both (count, features). mean and rstd are each feature's; kLayer and kRms
// find them in each sample, and write the latter to sample_rstd where that is given.
template <class A>
void normalise(const Norm& norm, int64_t features, int64_t count, const A* z, const A* mean, const A* rstd, A* x_hat,
               A* sample_rstd) {
  for_each_task(count, features, [&](int64_t n) {
    const A* from = z + n * features;
    A* to = x_hat + n * features;
    if (norm.kind == NormKind::kNone) {
      std::copy(from, from + features, to);
    } else if (!over_sample(norm)) {
      for (int64_t h = 0; h < features; ++h) to[h] = (from[h] - mean[h]) * rstd[h];
    } else {
      double sum = 0, squares = 0;
      for (int64_t h = 0; h < features && norm.kind == NormKind::kLayer; ++h) sum += from[h];
      const double center = sum / double(features);
      for (int64_t h = 0; h < features; ++h) squares += (from[h] - center) * (from[h] - center);
      const A scale = A(1 / std::sqrt(squares / double(features) + norm.eps));
      for (int64_t h = 0; h < features; ++h) to[h] = (from[h] - A(center)) * scale;
      if (sample_rstd) sample_rstd[n] = scale;
    }
  });
}

// relu(x_hat * weight + bias)
template <class A>
void activate(const std::vector<A>& weight, const std::vector<A>& bias, int64_t count, const A* x_hat, A* activation) {
  const auto features = int64_t(weight.size());
  for_each_task(count, features, [&](int64_t n) {
    for (int64_t h = 0; h < features; ++h)
      activation[n * features + h] = relu(x_hat[n * features + h] * weight[h] + bias[h]);
  });
}

// Calls run(row, index, statistic) for the rows of some samples, with what alpha[index] is multiplied by: the row's
// mean, or the average of the sample's. P is GatedShrink or GatedShrinkBackward.
template <class A, class P, class Run>
void for_each_alpha(const P& p, int64_t first, int64_t count, const Run& run) {
  const int64_t channels = p.rows.channels;
  for (int64_t n = first; n < first + count; ++n) {
    const A* mean = as<A>(p.mean) + n * channels;
    const A average = p.per_sample ? A(std::accumulate(mean, mean + channels, 0.0) / double(channels)) : A(0);
    for (int64_t c = 0; c < channels; ++c)
      run(n * channels + c, p.gate.outputs == 1 ? n : n * channels + c, p.per_sample ? average : mean[c]);
  }
}

}  // namespace

Lines lines_of_samples(const Rows& rows, const Gate& gate) {
  Lines lines(rows, true);
  const int64_t heavy = gate.hidden > rows.length / 8 ? kSamples * rows.channels * rows.length : 0;
  lines.cached = std::max(kCachedSamples, heavy);
  return lines;
}

template <class A>
void running_statistics(const Norm& norm, int64_t features, A* mean, A* rstd) {
  for (int64_t h = 0; h < features; ++h) {
    mean[h] = norm.running_mean ? as<A>(norm.running_mean)[h] : A(0);
    rstd[h] = A(1 / std::sqrt((norm.running_var ? double(as<A>(norm.running_var)[h]) : 1) + norm.eps));
  }
}

template <class A>
BatchStatistics<A>::BatchStatistics(const Norm& norm, int64_t count) : norm_(norm), count_(double(count)) {
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
  enter(norm_.running_var, variance * count_ / (count_ - 1));
}

template <class A>
GateForward<A>::GateForward(const GatedShrink& p)
    : tau(p.rows.samples * p.rows.channels),
      p_(p),
      state_(as<A>(p.state), p.rows, p.gate),
      norm_weight_(values_or(p.gate.norm.weight, p.gate.hidden, A(1))),
      norm_bias_(values_or(p.gate.norm.bias, p.gate.hidden, A(0))) {
  if (p.gate.norm.kind == NormKind::kRunning)
    running_statistics(p.gate.norm, p.gate.hidden, state_.norm_mean, state_.norm_rstd);
}

template <class A>
void GateForward<A>::run(int64_t first, int64_t count, const double* sums) {
  const Gate& gate = p_.gate;
  const int64_t channels = p_.rows.channels, hidden = gate.hidden, outputs = gate.outputs;
  A* mean = as<A>(p_.mean) + first * channels;
  A* z1 = state_.z1 + first * hidden;
  A* alpha = state_.alpha + first * outputs;
  const A* b1 = as<A>(gate.b1);
  const A* b2 = as<A>(gate.b2);
  for (int64_t r = 0; r < count * channels; ++r) mean[r] = A(sums[r] / double(p_.rows.length));

  multiply_samples(as<A>(gate.w1), channels, int64_t(1), hidden, channels, mean, count,
                   [&](int64_t n, int64_t row, int64_t tile, const A* products) {
                     for (int64_t h = row; h < row + tile; ++h)
                       z1[n * hidden + h] = products[(h - row) * kSamples] + (b1 ? b1[h] : A(0));
                   });
  if (gate.norm.kind == NormKind::kBatch)
    batch_statistics(gate.norm, z1, count, hidden, state_.norm_mean, state_.norm_rstd);
  thread_local std::vector<A> activation;
  activation.resize(count * hidden);
  A* a = activation.data();
  normalise<A>(gate.norm, hidden, count, z1, state_.norm_mean, state_.norm_rstd, a, nullptr);
  activate(norm_weight_, norm_bias_, count, a, a);
  multiply_samples(as<A>(gate.w2), hidden, int64_t(1), outputs, hidden, a, count,
                   [&](int64_t n, int64_t row, int64_t tile, const A* products) {
                     for (int64_t k = row; k < row + tile; ++k) {
                       const A z = products[(k - row) * kSamples] + (b2 ? b2[k] : A(0));
                       alpha[n * outputs + k] = A(1) / (A(1) + std::exp(-z));
                     }
                   });
  for_each_alpha<A>(p_, first, count, [&](int64_t row, int64_t k, A s) { tau[row] = relu(state_.alpha[k] * s); });
}

template <class A>
GateBackward<A>::GateBackward(const GatedShrinkBackward& p)
    : share(p.rows.samples * p.rows.channels),
      p_(p),
      state_(as<A>(p.state), p.rows, p.gate),
      samples_(p.rows.samples),
      channels_(p.rows.channels),
      hidden_(p.gate.hidden),
      outputs_(p.gate.outputs),
      norm_weight_(values_or(p.gate.norm.weight, hidden_, A(1))),
      norm_bias_(values_or(p.gate.norm.bias, hidden_, A(0))),
      sample_rstd_(over_sample(p.gate.norm) ? samples_ : 0),
      x_hat_(samples_ * hidden_),
      activation_(samples_ * hidden_),
      dhidden_(samples_ * hidden_),
      dz1_(samples_ * hidden_),
      dz2_(samples_ * outputs_) {}

template <class A>
std::vector<A> GateBackward<A>::thresholds() const {
  std::vector<A> tau(share.size());
  for_each_alpha<A>(p_, 0, samples_, [&](int64_t row, int64_t k, A s) { tau[row] = relu(state_.alpha[k] * s); });
  return tau;
}

template <class A>
void GateBackward<A>::run(int64_t first, int64_t count, const double* sums, int64_t step) {
  const int64_t first_row = first * channels_, from = first * hidden_;
  const A* alpha = state_.alpha + first * outputs_;
  // Of the samples: gradients of alpha, and of the means through the gate and through the statistic.
  std::vector<A> dalpha(count * outputs_), through_gate(count * channels_), through_statistic(count * channels_);
  for_each_alpha<A>(p_, first, count, [&](int64_t row, int64_t k, A s) {
    const A dtau = A(-sums[(row - first_row) * step]);
    dalpha[k - first * outputs_] += dtau * s;
    through_statistic[row - first_row] = dtau * state_.alpha[k];
  });
  for (int64_t n = 0; n < count && p_.per_sample; ++n) {
    const auto begin = through_statistic.begin() + n * channels_, end = begin + channels_;
    std::fill(begin, end, A(std::accumulate(begin, end, 0.0) / double(channels_)));
  }

  A* dz2 = &dz2_[first * outputs_];
  for (int64_t i = 0; i < count * outputs_; ++i) dz2[i] = dalpha[i] * alpha[i] * (A(1) - alpha[i]);
  normalise<A>(p_.gate.norm, hidden_, count, state_.z1 + from, state_.norm_mean, state_.norm_rstd, &x_hat_[from],
               sample_rstd_.empty() ? nullptr : &sample_rstd_[first]);
  activate(norm_weight_, norm_bias_, count, &x_hat_[from], &activation_[from]);
  multiply_samples(as<A>(p_.gate.w2), int64_t(1), hidden_, hidden_, outputs_, dz2, count,
                   [&](int64_t n, int64_t row, int64_t tile, const A* products) {
                     for (int64_t h = row; h < row + tile; ++h) {
                       const int64_t i = from + n * hidden_ + h;
                       dhidden_[i] = activation_[i] <= A(0) ? A(0) : products[(h - row) * kSamples];
                     }
                   });
  p_.gate.norm.kind == NormKind::kBatch ? backward_of_batch() : backward_of_samples(first, count);
  multiply_samples(as<A>(p_.gate.w1), int64_t(1), channels_, channels_, hidden_, &dz1_[from], count,
                   [&](int64_t n, int64_t row, int64_t tile, const A* products) {
                     for (int64_t c = row; c < row + tile; ++c)
                       through_gate[n * channels_ + c] = products[(c - row) * kSamples];
                   });

  const A* grad_mean = as<A>(p_.grad_mean);
  for (int64_t r = 0; r < count * channels_; ++r) {
    const A given = grad_mean ? grad_mean[first_row + r] : A(0);
    share[first_row + r] = (through_gate[r] + through_statistic[r] + given) / A(p_.rows.length);
  }
}

// With d the gradient of x_hat: dz1 = rstd * (d - average(d) - x_hat * average(d * x_hat)), averages over the batch.
template <class A>
void GateBackward<A>::backward_of_batch() {
  for_each_range(hidden_, kTile, samples_, [&](int64_t begin, int64_t tile) {
    double sums[kTile] = {}, slopes[kTile] = {};
    for (int64_t n = 0; n < samples_; ++n) {
      const int64_t i = n * hidden_ + begin;
      for (int64_t h = 0; h < tile; ++h) {
        sums[h] += dhidden_[i + h];
        slopes[h] += double(dhidden_[i + h]) * x_hat_[i + h];
      }
    }
    A average[kTile], slope[kTile], scale[kTile];
    for (int64_t h = 0; h < tile; ++h) {
      average[h] = A(sums[h] / double(samples_));
      slope[h] = A(slopes[h] / double(samples_));
      scale[h] = state_.norm_rstd[begin + h] * norm_weight_[begin + h];
    }
    for (int64_t n = 0; n < samples_; ++n) {
      const int64_t i = n * hidden_ + begin;
      for (int64_t h = 0; h < tile; ++h)
        dz1_[i + h] = scale[h] * (dhidden_[i + h] - average[h] - x_hat_[i + h] * slope[h]);
    }
  });
}

// The same with averages over the features of each sample; over running statistics they are constants and drop out, and
// kRms has no mean.
template <class A>
void GateBackward<A>::backward_of_samples(int64_t first, int64_t count) {
  const NormKind kind = p_.gate.norm.kind;
  for (int64_t n = first; n < first + count; ++n) {
    const A* x_hat = &x_hat_[n * hidden_];
    const A* d = &dhidden_[n * hidden_];
    A* out = &dz1_[n * hidden_];
    double sum = 0, product = 0;
    for (int64_t h = 0; h < hidden_ && over_sample(p_.gate.norm); ++h) {
      if (kind == NormKind::kLayer) sum += d[h] * norm_weight_[h];
      product += double(d[h] * norm_weight_[h]) * x_hat[h];
    }
    const A average = A(sum / double(hidden_)), slope = A(product / double(hidden_));
    for (int64_t h = 0; h < hidden_; ++h) {
      if (kind == NormKind::kNone) {
        out[h] = d[h];
      } else if (kind == NormKind::kRunning) {
        out[h] = d[h] * norm_weight_[h] * state_.norm_rstd[h];
      } else {
        out[h] = sample_rstd_[n] * (d[h] * norm_weight_[h] - average - x_hat[h] * slope);
      }
    }
  }
}

template <class A>
void GateBackward<A>::write_parameters() const {
  // out[r, j] = sum over the samples of d[n, r] * in[n, j]
  const auto weight = [&](const std::vector<A>& d, int64_t rows, const A* in, int64_t columns, void* out) {
    if (!out) return;
    for_each_range(rows, kTile, columns * samples_ / 8, [&](int64_t row, int64_t tile) {
      multiply<A>({&d[row], 1, rows, in, columns, as<A>(out) + row * columns, columns, tile, samples_, columns});
    });
  };
  // out[r] = sum over the samples of d[n, r], or of d[n, r] * by[n, r]
  const auto sum = [&](const std::vector<A>& d, const A* by, int64_t features, void* out) {
    if (!out) return;
    std::vector<double> sums(features);
    for (int64_t n = 0; n < samples_; ++n) {
      for (int64_t h = 0; h < features; ++h) {
        const int64_t i = n * features + h;
        sums[h] += by ? double(d[i]) * by[i] : d[i];
      }
    }
    std::copy(sums.begin(), sums.end(), as<A>(out));
  };
  weight(dz1_, hidden_, as<A>(p_.mean), channels_, p_.dw1);
  weight(dz2_, outputs_, activation_.data(), hidden_, p_.dw2);
  sum(dz1_, nullptr, hidden_, p_.db1);
  sum(dz2_, nullptr, outputs_, p_.db2);
  sum(dhidden_, nullptr, hidden_, p_.dnorm_bias);
  sum(dhidden_, x_hat_.data(), hidden_, p_.dnorm_weight);
}

#define DRSN_INSTANTIATE(A)                                       \
  template void running_statistics(const Norm&, int64_t, A*, A*); \
  template class BatchStatistics<A>;                              \
  template class GateForward<A>;                                  \
  template class GateBackward<A>;
DRSN_INSTANTIATE(float)
DRSN_INSTANTIATE(double)

}  // namespace drsn::cpu
