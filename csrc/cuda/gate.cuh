// The gate over a whole batch: what its kernels are given, and their launches.
#pragma once

#include "cuda/gate_math.cuh"
#include "cuda/launch.cuh"

namespace drsn::cuda {

// Where in `state` each array starts: GateState for the device.
struct StateOffsets {
  int64_t hidden, alpha, norm_mean, norm_rstd;

  StateOffsets(int64_t samples, const Gate& gate) {
    const GateState state{samples, gate.hidden, gate.outputs};
    hidden = state.hidden_at(), alpha = state.alpha_at();
    norm_mean = state.norm_mean_at(), norm_rstd = state.norm_rstd_at();
  }
};

// The gate forward: reads mean, writes state.
struct GateForward : GatedShrink {
  StateOffsets at;
  bool by_sample;    // the norm is over each sample
  void* statistic;   // (samples), written where per_sample
  void* piece_sums;  // scratch memory for kBatch: (pieces, 2, hidden), mean and squares of pieces of the batch

  GateForward(const GatedShrink& op, Carve& carve);
};

// The gate backward: writes the parameters' gradients and, where `share` is given, what each element of a row receives
// along its sign.
struct GateBackward : GatedShrinkBackward {
  StateOffsets at;
  bool by_sample;          // the norm is over each sample
  const void* active_sum;  // (samples, channels), from the caller: sums over rows of active * sign * g
  void* share;             // (samples, channels), from the caller, or null
  // Scratch memory.
  void* dz2;          // (samples, outputs): gradient before the sigmoid
  void* dh;           // (samples, hidden): gradient before the ReLU
  void* dstatistic;   // (samples), where per_sample
  void* sample_norm;  // (2, samples): mean and rstd of a norm over each sample
  // (pieces, 2, n): sums of weight * dh and of weight * dh * xhat. Over pieces of the batch for kBatch, n = hidden;
  // over pieces of the features for a norm over each sample, n = samples; none for the rest.
  void* piece_sums;
  int64_t pieces;
  void* piece_gradients;  // the parameters' gradients, one after another, for each of the WeightPieces

  GateBackward(const GatedShrinkBackward& op, Carve& carve);

  bool needs_weights() const { return dw1 || db1 || dnorm_weight || dnorm_bias || dw2 || db2; }
  constexpr int64_t weights_size() const {
    return gate.hidden * rows.channels + 3 * gate.hidden + gate.outputs * (gate.hidden + 1);
  }
};

// The blocks of a gate's two layers; 0 where a launch does without one.
struct Layers {
  int64_t first, second;
  constexpr bool both() const { return first > 0 && second > 0; }
};

// Launches kernel(arguments..., layers): once for both layers where one block or one cluster makes them, else once for
// each.
template <class... Parameters, class... Arguments>
cudaError_t launch_layers(void (*kernel)(Parameters...), const Layers& all, cudaStream_t stream,
                          const Arguments&... arguments) {
  const int64_t most = std::max(all.first, all.second);
  const bool cluster = most > 1 && most <= kMostOfCluster && compiled_for_hopper(reinterpret_cast<const void*>(kernel));
  if (all.both() && (most == 1 || cluster)) {
    return launch_next(kernel, power_of_two_at_least(most), kThreads, Stream(stream, true, cluster), arguments..., all);
  }
  DRSN_CUDA_TRY(launch_next(kernel, all.first, kThreads, stream, arguments..., Layers{all.first, 0}));
  return launch_next(kernel, all.second, kThreads, stream, arguments..., Layers{0, all.second});
}

cudaError_t gate_forward(const GateForward& op, cudaStream_t stream);
cudaError_t gate_backward(const GateBackward& op, cudaStream_t stream);
// The second half of gate_backward, from dz2, dh, sample_norm and piece_sums.
cudaError_t gate_backward_products(const GateBackward& op, cudaStream_t stream);
// Each sample's mean of means, (samples), with the bits of gate_forward.
cudaError_t sample_statistics(DType dtype, const void* mean, const Rows& rows, void* statistic, cudaStream_t stream);

}  // namespace drsn::cuda
