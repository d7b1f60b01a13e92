// gated_shrink and its backward: a sample and its gate in one block, or one kernel after another.
#include "cuda/backend.h"
#include "cuda/gate.cuh"
#include "cuda/gate_on_chip.cuh"
#include "cuda/mask_backward.cuh"
#include "cuda/on_chip.cuh"
#include "cuda/shrink.cuh"

namespace drsn::cuda {
namespace {

template <class scalar_t, int V>
__global__ void __launch_bounds__(kOnChipThreads, kFewBlocks)
    gated_shrink_on_chip(const __grid_constant__ GatedShrink op, const __grid_constant__ OnChip plan,
                         const __grid_constant__ Divisor channels, const __grid_constant__ StateOffsets in_state) {
  wait_for_previous();
  using acc_t = Accumulator<scalar_t>;
  __shared__ OnChipGate<acc_t> gate;
  const OnChipPlace<false, V> at(plan, op.rows, channels);
  const int length = int(op.rows.length);
  Packed<scalar_t, V> held[kOnChipSlots<V>];
  hold(held, at, length, static_cast<const scalar_t*>(op.x) + at.row * length);
  prefetch_line<V>(at, length, static_cast<const scalar_t*>(op.residual));
  acc_t sum[1] = {};
  add_abs(sum, held, at, length);
  at.sum(plan, sum);
  const acc_t mean = sum[0] / acc_t(length);
  if (at.first) {
    gate.channel[at.c] = mean;
    static_cast<acc_t*>(op.mean)[at.row] = mean;
  }
  acc_t statistic = mean;
  if (op.per_sample) statistic = block_sum(at.first ? mean : acc_t(0)) / acc_t(op.rows.channels);
  gate_forward_on_chip(gate, op, in_state, blockIdx.x);
  const acc_t alpha = gate.output[op.gate.outputs == 1 || !at.exists ? 0 : at.c];
  shrink_held(held, at, length, {relu(alpha * statistic)}, op.residual, op.y, op.mask);
}

// dx of a sample, and dz2, dh and the norm's sums for gate_backward_products.
template <class scalar_t, int V>
__global__ void __launch_bounds__(kOnChipThreads, kFewBlocks)
    gated_shrink_backward_on_chip(const __grid_constant__ GateBackward op, const __grid_constant__ OnChip plan,
                                  const __grid_constant__ Divisor channels) {
  wait_for_previous();
  using acc_t = Accumulator<scalar_t>;
  __shared__ OnChipGate<acc_t> gate;
  const OnChipPlace<false, V> at(plan, op.rows, channels);
  const int length = int(op.rows.length);
  const int64_t n = blockIdx.x;
  const int outputs = int(op.gate.outputs);
  Packed<scalar_t, V> held[kOnChipSlots<V>];
  unsigned word[kOnChipSlots<V>];
  hold_gradient(held, word, at, length, static_cast<const scalar_t*>(op.grad) + at.row * length, op.mask);
  acc_t active_sum[1] = {};
  add_active(active_sum, held, word, at, length);
  at.sum(plan, active_sum);

  acc_t mean = 0, alpha = 0;
  if (at.exists) {
    mean = static_cast<const acc_t*>(op.mean)[at.row];
    alpha = static_cast<const acc_t*>(op.state)[op.at.alpha + n * outputs + (outputs == 1 ? 0 : at.c)];
  }
  acc_t statistic = mean;
  if (op.per_sample) statistic = block_sum(at.first ? mean : acc_t(0)) / acc_t(op.rows.channels);
  const acc_t dtau = at.first ? -active_sum[0] : acc_t(0);
  acc_t dstatistic = dtau * alpha;
  if (op.per_sample) dstatistic = block_sum(dstatistic) / acc_t(op.rows.channels);
  acc_t dalpha = dtau * statistic;
  if (outputs == 1) dalpha = block_sum(dalpha);
  if (at.first && (outputs != 1 || at.c == 0)) {
    const acc_t dz2 = sigmoid_gradient(dalpha, alpha);
    gate.output[at.c] = dz2;
    static_cast<acc_t*>(op.dz2)[n * outputs + at.c] = dz2;
  }
  gate_backward_on_chip(gate, op, n);
  if (op.dx == nullptr) return;
  // Without per_sample the row's first thread alone has d_statistic.
  if (at.first) {
    gate.channel[at.c] = (gate.channel[at.c] + dstatistic + value_or<acc_t>(op.grad_mean, at.row, 0)) / acc_t(length);
  }
  __syncthreads();
  if (!at.exists) return;
  combine_held(held, word, at, length, {gate.channel[at.c]}, static_cast<scalar_t*>(op.dx) + at.row * length);
}

// If V = 1 fits in registers, every V does. Used to size the workspace, when alignment is not known yet.
bool always_on_chip(const Rows& rows, const Gate& gate) { return plan_gated_on_chip(rows, gate, 1).fits; }

AbsMean mean_of(const GatedShrink& op) { return {op.dtype, op.x, op.mean, nullptr, op.rows, false}; }

// The forward of what does not fit on chip: means, gate, and x once more.
struct Forward {
  GateForward gate;
  void* sums;  // of abs_mean

  Forward(const GatedShrink& op, Carve& carve)
      : gate(op, carve), sums(carve.take(ceil_div(abs_mean_workspace(mean_of(op)), accumulator_bytes(op.dtype)))) {}

  cudaError_t run(cudaStream_t stream) const {
    DRSN_CUDA_TRY(abs_mean(mean_of(gate), sums, stream));
    DRSN_CUDA_TRY(gate_forward(gate, stream));
    const void* alpha = static_cast<const char*>(gate.state) + gate.at.alpha * accumulator_bytes(gate.dtype);
    const int64_t outputs = gate.gate.outputs;
    return shrink_from_means(
        {gate.dtype, gate.x, gate.residual, gate.y, RowValues{alpha, outputs, outputs == 1 ? 0 : 1},
         gate.per_sample ? gate.statistic : gate.mean, gate.mask, gate.rows, gate.per_sample},
        stream);
  }
};

// The backward's arrays, and its kernels where the sample does not fit on chip: sums over rows, gate, and the gradient
// once more.
struct Backward {
  GateBackward gate;
  void *active_sum = nullptr, *share = nullptr, *sums = nullptr;  // the last is for row_active_sums

  Backward(const GatedShrinkBackward& op, Carve& carve) : gate(op, carve) {
    if (always_on_chip(op.rows, op.gate)) return;
    active_sum = carve.take(op.rows.samples * op.rows.channels);
    share = carve.take(op.rows.samples * op.rows.channels);
    sums = carve.take(Reduction(row_axes(op.rows, false)).workspace_elements());
  }

  cudaError_t run(cudaStream_t stream) {
    DRSN_CUDA_TRY(row_active_sums(gate, active_sum, sums, stream));
    gate.active_sum = active_sum;
    if (gate.dx != nullptr) gate.share = share;
    DRSN_CUDA_TRY(gate_backward(gate, stream));
    if (gate.dx == nullptr) return cudaSuccess;
    const RowValues row_share{share, gate.rows.channels, 1};
    return combine({gate.dtype, gate.grad, row_share, gate.mask, kShrinkPlanes, gate.dx, gate.rows},
                   Stream(stream, true));
  }
};

}  // namespace

int64_t gated_shrink_workspace(const GatedShrink& op) {
  return always_on_chip(op.rows, op.gate) ? 0 : workspace_of<Forward>(op);
}

cudaError_t gated_shrink(const GatedShrink& op, void* workspace, cudaStream_t stream) {
  return dispatch(
      op.dtype, [&](int V) { return aligned(op.x, op.y, op.residual) && vectors_fit(op.rows, V); },
      [&](auto scalar, auto V) {
        const OnChip plan = plan_gated_on_chip(op.rows, op.gate, V);
        if (!plan.fits) {
          Carve carve(workspace, op.dtype);
          return Forward(op, carve).run(stream);
        }
        return launch(&gated_shrink_on_chip<decltype(scalar), V>, plan.blocks, plan.threads, stream, op, plan,
                      Divisor(op.rows.channels), StateOffsets(op.rows.samples, op.gate));
      });
}

int64_t gated_shrink_backward_workspace(const GatedShrinkBackward& op) { return workspace_of<Backward>(op); }

cudaError_t gated_shrink_backward(const GatedShrinkBackward& op, void* workspace, cudaStream_t stream) {
  Carve carve(workspace, op.dtype);
  Backward backward(op, carve);
  return dispatch(
      op.dtype, [&](int V) { return aligned(op.grad, op.dx) && vectors_fit(op.rows, V); },
      [&](auto scalar, auto V) {
        const OnChip plan = plan_gated_on_chip(op.rows, op.gate, V);
        if (!plan.fits) return backward.run(stream);
        GateBackward& gate = backward.gate;
        if (gate.by_sample) gate.pieces = 1;
        DRSN_CUDA_TRY(launch(&gated_shrink_backward_on_chip<decltype(scalar), V>, plan.blocks, plan.threads, stream,
                             gate, plan, Divisor(op.rows.channels)));
        return gate.needs_weights() ? gate_backward_products(gate, stream) : cudaSuccess;
      });
}

}  // namespace drsn::cuda
