#include "gate.h"

#include <cmath>

#include "parallel.h"

namespace drsn::cpu {
namespace {

constexpr int64_t kSamples = 16;  // samples that lie side by side in a product
constexpr int64_t kTile = 128;    // features, or rows of a product, that are one task

template <class A>
std::vector<A> values_or(const void* values, int64_t n, A otherwise) {
  return values ? std::vector<A>(as<A>(values), as<A>(values) + n) : std::vector<A>(n, otherwise);
}

// out(n, r) = sum over k of weight(r, k) * in(n, k) for `count` samples; `in` is (count, terms). take(n, row, rows,
// sums) gets rows [row, row + rows) of sample n at sums[r * kSamples].
template <class A, class Take>
void products(const A* weight, int64_t row_stride, int64_t term_stride, int64_t rows, int64_t terms, const A* in,
              int64_t count, const Take& take) {
  const int64_t blocks = (count + kSamples - 1) / kSamples;
  // Rows are split where the samples alone would leave threads idle.
  const int64_t wanted = (2 * torch::stable::get_num_threads() + blocks - 1) / blocks;
  const int64_t tile = std::max(kTile, (rows + wanted - 1) / wanted);
  const int64_t tiles = (rows + tile - 1) / tile;
  for_each_task(blocks * tiles, kSamples * std::min(rows, tile) * terms / 8, [&](int64_t task) {
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

// The normalisation of `count` samples from z, (count, features). It divides by what is given for each feature, or, of
// kLayer and kRms, by what it finds in each sample and writes to sample_rstd, if there is one.
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
void activate(const Norm& norm, int64_t features, int64_t count, const A* x_hat, A* activation) {
  const std::vector<A> weight = values_or(norm.weight, features, A(1)), bias = values_or(norm.bias, features, A(0));
  for_each_task(count, features, [&](int64_t n) {
    for (int64_t h = 0; h < features; ++h)
      activation[n * features + h] = relu(x_hat[n * features + h] * weight[h] + bias[h]);
  });
}

}  // namespace

template <class A>
void running_statistics(const Norm& norm, int64_t features, A* mean, A* rstd) {
  for (int64_t h = 0; h < features; ++h) {
    mean[h] = norm.running_mean ? as<A>(norm.running_mean)[h] : A(0);
    rstd[h] = A(1 / std::sqrt((norm.running_var ? double(as<A>(norm.running_var)[h]) : 1) + norm.eps));
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
  A* z1 = state + at.hidden_at() + first * hidden;
  A* alpha = state + at.alpha_at() + first * outputs;
  A* norm_mean = state + at.norm_mean_at();
  A* norm_rstd = state + at.norm_rstd_at();
  const A* b1 = as<A>(gate.b1);
  const A* b2 = as<A>(gate.b2);

  products(as<A>(gate.w1), channels, int64_t(1), hidden, channels, mean + first * channels, count,
           [&](int64_t n, int64_t row, int64_t tile, const A* sums) {
             for (int64_t h = row; h < row + tile; ++h)
               z1[n * hidden + h] = sums[(h - row) * kSamples] + (b1 ? b1[h] : A(0));
           });
  if (gate.norm.kind == NormKind::kBatch) batch_statistics(gate.norm, z1, count, hidden, norm_mean, norm_rstd);
  thread_local std::vector<A> activation;
  activation.resize(count * hidden);
  A* a = activation.data();
  normalise<A>(gate.norm, hidden, count, z1, norm_mean, norm_rstd, a, nullptr);
  activate(gate.norm, hidden, count, a, a);
  products(as<A>(gate.w2), hidden, int64_t(1), outputs, hidden, a, count,
           [&](int64_t n, int64_t row, int64_t tile, const A* sums) {
             for (int64_t k = row; k < row + tile; ++k) {
               const A z = sums[(k - row) * kSamples] + (b2 ? b2[k] : A(0));
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
      weight_(values_or(gate.norm.weight, hidden_, A(1))),
      sample_rstd_(over_sample(gate.norm) ? samples_ : 0),
      x_hat_(samples_ * hidden_),
      activation_(samples_ * hidden_),
      dhidden_(samples_ * hidden_),
      dz1_(samples_ * hidden_),
      dz2_(samples_ * outputs_) {
  const GateState at{samples_, hidden_, outputs_};
  z1_ = state + at.hidden_at();
  alpha_ = state + at.alpha_at();
  norm_mean_ = state + at.norm_mean_at();
  norm_rstd_ = state + at.norm_rstd_at();
}

template <class A>
void GateBackward<A>::run(int64_t first, int64_t count, const A* dalpha, A* dmean) {
  const int64_t from = first * hidden_;
  const A* alpha = alpha_ + first * outputs_;
  A* dz2 = &dz2_[first * outputs_];
  for (int64_t i = 0; i < count * outputs_; ++i) dz2[i] = dalpha[i] * alpha[i] * (A(1) - alpha[i]);
  normalise<A>(gate_.norm, hidden_, count, z1_ + from, norm_mean_, norm_rstd_, &x_hat_[from],
               sample_rstd_.empty() ? nullptr : &sample_rstd_[first]);
  activate(gate_.norm, hidden_, count, &x_hat_[from], &activation_[from]);
  products(as<A>(gate_.w2), int64_t(1), hidden_, hidden_, outputs_, dz2, count,
           [&](int64_t n, int64_t row, int64_t tile, const A* sums) {
             for (int64_t h = row; h < row + tile; ++h) {
               const int64_t i = from + n * hidden_ + h;
               dhidden_[i] = activation_[i] <= A(0) ? A(0) : sums[(h - row) * kSamples];
             }
           });
  gate_.norm.kind == NormKind::kBatch ? backward_of_batch() : backward_of_samples(first, count);
  products(as<A>(gate_.w1), int64_t(1), channels_, channels_, hidden_, &dz1_[from], count,
           [&](int64_t n, int64_t row, int64_t tile, const A* sums) {
             for (int64_t c = row; c < row + tile; ++c) dmean[n * channels_ + c] = sums[(c - row) * kSamples];
           });
}

// With d the gradient of x_hat: dz1 = rstd * (d - average(d) - x_hat * average(d * x_hat)), averages over the batch.
template <class A>
void GateBackward<A>::backward_of_batch() {
  for_each_task((hidden_ + kTile - 1) / kTile, samples_ * std::min(hidden_, kTile), [&](int64_t task) {
    const int64_t begin = task * kTile, tile = std::min(kTile, hidden_ - begin);
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
      scale[h] = norm_rstd_[begin + h] * weight_[begin + h];
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
  const NormKind kind = gate_.norm.kind;
  for (int64_t n = first; n < first + count; ++n) {
    const A* x_hat = &x_hat_[n * hidden_];
    const A* d = &dhidden_[n * hidden_];
    A* out = &dz1_[n * hidden_];
    double sum = 0, product = 0;
    for (int64_t h = 0; h < hidden_ && over_sample(gate_.norm); ++h) {
      if (kind == NormKind::kLayer) sum += d[h] * weight_[h];
      product += double(d[h] * weight_[h]) * x_hat[h];
    }
    const A average = A(sum / double(hidden_)), slope = A(product / double(hidden_));
    for (int64_t h = 0; h < hidden_; ++h) {
      if (kind == NormKind::kNone) {
        out[h] = d[h];
      } else if (kind == NormKind::kRunning) {
        out[h] = d[h] * weight_[h] * norm_rstd_[h];
      } else {
        out[h] = sample_rstd_[n] * (d[h] * weight_[h] - average - x_hat[h] * slope);
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
  // out[r] = sum over the samples of d[n, r], or of d[n, r] * by[n, r]
  const auto sum = [&](const std::vector<A>& d, const A* by, int64_t features, A* out) {
    if (!out) return;
    std::vector<double> sums(features);
    for (int64_t n = 0; n < samples_; ++n) {
      for (int64_t h = 0; h < features; ++h) {
        const int64_t i = n * features + h;
        sums[h] += by ? double(d[i]) * by[i] : d[i];
      }
    }
    std::copy(sums.begin(), sums.end(), out);
  };
  weight(dz1_, hidden_, mean_, channels_, dw1);
  weight(dz2_, outputs_, activation_.data(), hidden_, dw2);
  sum(dz1_, nullptr, hidden_, db1);
  sum(dz2_, nullptr, outputs_, db2);
  sum(dhidden_, nullptr, hidden_, dnorm_bias);
  sum(dhidden_, x_hat_.data(), hidden_, dnorm_weight);
}

#define DRSN_INSTANTIATE(A)                                                             \
  template void running_statistics(const Norm&, int64_t, A*, A*);                       \
  template void gate_forward(const Gate&, const Rows&, const A*, A*, int64_t, int64_t); \
  template class BatchStatistics<A>;                                                    \
  template class GateBackward<A>;
DRSN_INSTANTIATE(float)
DRSN_INSTANTIATE(double)

}  // namespace drsn::cpu
