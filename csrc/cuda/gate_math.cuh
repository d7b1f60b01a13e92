// The gate's formulas, one copy for its kernels over the whole batch, for a gate on chip and for batch_norm_shrink.
#pragma once

#include "cuda/block_sums.cuh"
#include "params.h"
#include "shrinkage_math.h"

namespace drsn::cuda {

// True for a norm over the features of each sample.
constexpr bool of_samples(NormKind kind) { return kind == NormKind::kLayer || kind == NormKind::kRms; }

template <class acc_t>
__device__ __forceinline__ acc_t value_or(const void* data, int64_t i, double otherwise) {
  return data == nullptr ? acc_t(otherwise) : static_cast<const acc_t*>(data)[i];
}
template <class acc_t>
__device__ __forceinline__ acc_t rstd_of(acc_t variance, double eps) {
  return acc_t(1) / sqrt(variance + acc_t(eps));
}

template <class acc_t>
__device__ __forceinline__ acc_t sigmoid(acc_t v) {
  return acc_t(1) / (acc_t(1) + exp(-v));
}
template <class acc_t>
__device__ __forceinline__ acc_t sigmoid_gradient(acc_t dalpha, acc_t alpha) {
  return dalpha * alpha * (acc_t(1) - alpha);
}

// The mean and rstd that normalise a number, and the two means that its gradient needs.
template <class acc_t>
struct NormNumbers {
  acc_t mean, rstd, dh, dh_xhat;  // the last two are means of weight * dh and of weight * dh * xhat

  __device__ __forceinline__ acc_t xhat(acc_t z) const { return (z - mean) * rstd; }
  __device__ __forceinline__ void set_means(NormKind kind, acc_t dh_sum, acc_t dh_xhat_sum, acc_t count) {
    if (kind != NormKind::kRms) dh = dh_sum / count;
    dh_xhat = dh_xhat_sum / count;
  }
  __device__ __forceinline__ acc_t gradient(acc_t weighted_dh, acc_t z) const {
    return rstd * (weighted_dh - dh - xhat(z) * dh_xhat);
  }
};

// relu(norm(z)) of hidden feature h, and the gradient before the ReLU from that of the activation.
template <class acc_t>
__device__ __forceinline__ acc_t activation(const Norm& norm, int64_t h, acc_t xhat) {
  return relu(xhat * value_or<acc_t>(norm.weight, h, 1) + value_or<acc_t>(norm.bias, h, 0));
}
template <class acc_t>
__device__ __forceinline__ acc_t activation_gradient(const Norm& norm, int64_t h, acc_t xhat, acc_t dactivation) {
  return activation(norm, h, xhat) <= acc_t(0) ? acc_t(0) : dactivation;
}

// For a norm over each sample: the numbers of one sample's features z(h), h < hidden. The Threads that share the sums
// are a warp or a block.
template <class Threads, class acc_t, class index_t, class Z>
__device__ __forceinline__ NormNumbers<acc_t> sample_numbers(const Norm& norm, index_t hidden, Z z) {
  NormNumbers<acc_t> numbers{0, 1, 0, 0};
  acc_t sum = 0, squares = 0;
  if (norm.kind == NormKind::kLayer) {
    for (index_t h = Threads::rank(); h < hidden; h += Threads::size()) sum += z(h);
    numbers.mean = Threads::sum(sum) / acc_t(hidden);
  }
  for (index_t h = Threads::rank(); h < hidden; h += Threads::size()) {
    const acc_t distance = z(h) - numbers.mean;
    squares += distance * distance;
  }
  numbers.rstd = rstd_of(Threads::sum(squares) / acc_t(hidden), norm.eps);
  return numbers;
}

template <class acc_t>
__device__ __forceinline__ NormNumbers<acc_t> running_numbers(const Norm& norm, int64_t i) {
  return {value_or<acc_t>(norm.running_mean, i, 0), rstd_of(value_or<acc_t>(norm.running_var, i, 1), norm.eps), 0, 0};
}

// Brings the running statistics of feature i up to date with those of a batch: `squares` is the sum of the squared
// distances of its `count` numbers from their mean. The counter of batches has yet to count this one.
template <class acc_t>
__device__ __forceinline__ void update_running(const Norm& norm, int64_t i, acc_t mean, acc_t squares, acc_t count) {
  if (norm.running_mean == nullptr) return;
  const int64_t batches = norm.batches == nullptr ? 1 : *norm.batches + 1;
  const acc_t f = norm.momentum < 0 ? acc_t(1) / acc_t(batches) : acc_t(norm.momentum);
  acc_t* running_mean = static_cast<acc_t*>(norm.running_mean) + i;
  acc_t* running_var = static_cast<acc_t*>(norm.running_var) + i;
  *running_mean = (acc_t(1) - f) * *running_mean + f * mean;
  *running_var = (acc_t(1) - f) * *running_var + f * (squares / (count > acc_t(1) ? count - acc_t(1) : acc_t(1)));
}
// Counts a batch. The caller sees to it that no thread reads the counter at the same time.
__device__ __forceinline__ void count_batch(const Norm& norm) {
  if (blockIdx.x == 0 && threadIdx.x == 0 && norm.kind == NormKind::kBatch && norm.batches != nullptr) ++*norm.batches;
}

// The mean of a sample's `channels` means: the statistic where per_sample. The whole warp must call it.
template <class acc_t>
__device__ __forceinline__ acc_t sample_statistic(const acc_t* means, int64_t channels) {
  acc_t sum = 0;
  for (int64_t c = threadIdx.x % kWarp; c < channels; c += kWarp) sum += means[c];
  return warp_sum(sum) / acc_t(channels);
}

}  // namespace drsn::cuda
