// The gate: what its kernels (gate.cu), the on-chip kernels and batch_norm_shrink share.
#pragma once

#include "cuda/common.cuh"

namespace drsn::cuda {

constexpr bool of_samples(NormKind kind) { return kind == NormKind::kLayer || kind == NormKind::kRms; }

// Where in `state` what lies: GateState for the device.
struct StateOffsets {
  int64_t hidden, alpha, norm_mean, norm_rstd;

  StateOffsets() = default;
  StateOffsets(int64_t samples, const Gate& gate) {
    const GateState state{samples, gate.hidden, gate.outputs};
    hidden = state.hidden_at(), alpha = state.alpha_at();
    norm_mean = state.norm_mean_at(), norm_rstd = state.norm_rstd_at();
  }
};

// A gate and what it reads and writes forwards. Pointers are to the accumulator's type.
struct GateForward {
  Gate gate;
  int64_t samples, channels;
  bool by_sample;    // the norm's statistics are of samples
  const void* mean;  // (samples, channels)
  StateOffsets layout;
  void* state;      // all but the statistics of kNone, kLayer and kRms is written
  void* statistic;  // (samples), written: each sample's mean of means; or null: not per_sample
  void* part_sums;  // scratch memory, kBatch alone: (parts, 2, hidden), mean and squares of parts of the batch
};

// Backwards, from the sums over rows of active * sign * g. Gradients may be null.
struct GateBackward {
  Gate gate;
  int64_t samples, channels, length;
  bool by_sample, per_sample;
  const void* mean;
  StateOffsets layout;
  const void* state;
  const void* active_sum;  // (samples, channels)
  const void* grad_mean;   // or null
  void* share;             // (samples, channels), written: what each element of a row receives along its sign; or null
  void *dw1, *db1, *dnorm_weight, *dnorm_bias, *dw2, *db2;
  // Scratch memory.
  void* dz2;          // (samples, outputs): gradient before the sigmoid
  void* dh;           // (samples, hidden): gradient before the ReLU
  void* dstatistic;   // (samples), where per_sample
  void* sample_norm;  // (2, samples): mean and rstd, where by_sample
  // (parts, 2, n): sums of weight * dh and of weight * dh * xhat. For kBatch parts of the batch, n = hidden; where
  // by_sample parts of the hidden features, n = samples; else no parts.
  void* part_sums;
  int64_t parts;
  void* splits;  // gradients of the weights, one behind the other, for each split of the samples

  bool needs_weights() const { return dw1 || db1 || dnorm_weight || dnorm_bias || dw2 || db2; }
  constexpr int64_t weights_size() const {
    return gate.hidden * channels + 3 * gate.hidden + gate.outputs * (gate.hidden + 1);
  }
};

// The statistics of a sample, as every kernel computes them: by one warp, in every lane.
template <class acc_t>
__device__ __forceinline__ acc_t warp_sum(acc_t v) {
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  return v;
}
template <class acc_t>
__device__ __forceinline__ acc_t sample_mean(const acc_t* means, int64_t channels) {
  acc_t sum = 0;
  for (int64_t c = threadIdx.x % kWarp; c < channels; c += kWarp) sum += means[c];
  return warp_sum(sum) / acc_t(channels);
}

template <class acc_t>
__device__ __forceinline__ acc_t value_or(const void* data, int64_t i, double otherwise) {
  return data == nullptr ? acc_t(otherwise) : static_cast<const acc_t*>(data)[i];
}
template <class acc_t>
__device__ __forceinline__ acc_t sigmoid(acc_t v) {
  return acc_t(1) / (acc_t(1) + exp(-v));
}
template <class acc_t>
__device__ __forceinline__ acc_t rstd_of(acc_t variance, double eps) {
  return acc_t(1) / sqrt(variance + acc_t(eps));
}

// The running statistics after a batch of `count` numbers; `batches` counts this one.
template <class acc_t>
__device__ __forceinline__ void update_running(const Norm& norm, int64_t i, acc_t mean, acc_t squares, acc_t count,
                                               int64_t batches) {
  if (norm.running_mean == nullptr) return;
  const acc_t f = norm.momentum < 0 ? acc_t(1) / acc_t(batches) : acc_t(norm.momentum);
  acc_t* running_mean = static_cast<acc_t*>(norm.running_mean) + i;
  acc_t* running_var = static_cast<acc_t*>(norm.running_var) + i;
  *running_mean = (acc_t(1) - f) * *running_mean + f * mean;
  *running_var = (acc_t(1) - f) * *running_var + f * (squares / (count > acc_t(1) ? count - acc_t(1) : acc_t(1)));
}

// Sums over the hidden features of a sample, or of the batch, that one normalised number's gradient takes.
template <class acc_t>
struct NormNumbers {
  acc_t mean, rstd, dh, dh_xhat;  // statistics; means of weight * dh and of weight * dh * xhat

  __device__ __forceinline__ acc_t xhat(acc_t z) const { return (z - mean) * rstd; }
  __device__ __forceinline__ acc_t gradient(acc_t weighted_dh, acc_t z) const {
    return rstd * (weighted_dh - dh - xhat(z) * dh_xhat);
  }
};

// relu(norm(z)) of hidden feature h.
template <class acc_t>
__device__ __forceinline__ acc_t activation(const Norm& norm, int64_t h, acc_t xhat) {
  return relu(xhat * value_or<acc_t>(norm.weight, h, 1) + value_or<acc_t>(norm.bias, h, 0));
}

// Two launches each way. Forwards: hidden features with the batch's sums, alpha. Backwards: gradient before the ReLU
// with its sums; share and weights; and a third that adds up splits of a very long batch.
cudaError_t gate_forward(DType dtype, const GateForward& op, cudaStream_t stream);
cudaError_t gate_backward(DType dtype, const GateBackward& op, cudaStream_t stream);
// Its second half alone, after dz2, dh, sample_norm and part_sums.
cudaError_t gate_backward_products(DType dtype, const GateBackward& op, cudaStream_t stream);
// (samples): each sample's mean of means, the bits of gate_forward.
cudaError_t sample_statistics(DType dtype, const void* mean, int64_t samples, int64_t channels, void* statistic,
                              cudaStream_t stream);

// The parts of a workspace: each call hands out the next stretch, aligned to 16 bytes; with null it only counts.
class Carve {
 public:
  Carve(void* workspace, DType dtype) : base_(static_cast<char*>(workspace)), bytes_(accumulator_bytes(dtype)) {}
  void* take(int64_t accumulators) {
    char* const start = base_ == nullptr ? nullptr : base_ + used_;
    used_ += ceil_div(accumulators * bytes_, 16) * 16;
    return start;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t bytes_, used_ = 0;
};

// The gate of an operator, with its scratch memory. active_sum and share are left to the caller.
GateForward gate_forward_of(const GatedShrink& op, Carve& carve);
GateBackward gate_backward_of(const GatedShrinkBackward& op, Carve& carve);

}  // namespace drsn::cuda
