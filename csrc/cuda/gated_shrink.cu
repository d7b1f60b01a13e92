#include "cuda/backend.h"
#include "cuda/gate.cuh"
#include "cuda/reduce.cuh"
#include "cuda/shrink.cuh"

namespace drsn::cuda {
namespace {

// A gate in the block of its sample.
template <class acc_t>
struct OnChipGate {
  acc_t row[kOnChipThreads];  // of a channel: m; backwards d_tau, then d_m
  acc_t hidden[kOnChipHidden];
  acc_t output[kOnChipThreads];  // alpha; backwards dz2
  acc_t partial[kOnChipThreads];
};

// out(i, sum over k of w[i][k] * v[k]) for each of `rows` rows, by a warp each.
template <class acc_t, class Out>
__device__ __forceinline__ void multiply(const void* data, int rows, int columns, const acc_t* v, Out out) {
  const acc_t* w = static_cast<const acc_t*>(data);
#pragma unroll 1
  for (int i = threadIdx.x / kWarp; i < rows; i += blockDim.x / kWarp) {
    acc_t sum = 0;
    for (int k = threadIdx.x % kWarp; k < columns; k += kWarp) sum += w[i * columns + k] * v[k];
    sum = warp_sum(sum);
    if (threadIdx.x % kWarp == 0) out(i, sum);
  }
}

// out(j, sum over i of w[i][j] * v[i]) for each of `columns` columns, by a thread of each warp, kWarp at a time.
template <class acc_t, class Out>
__device__ __forceinline__ void multiply_transposed(const void* data, int rows, int columns, const acc_t* v,
                                                    acc_t* partial, Out out) {
  const acc_t* w = static_cast<const acc_t*>(data);
  const int warps = blockDim.x / kWarp;
#pragma unroll 1
  for (int j0 = 0; j0 < columns; j0 += kWarp) {
    const int j = j0 + int(threadIdx.x % kWarp);
    acc_t sum = 0;
    for (int i = threadIdx.x / kWarp; i < rows && j < columns; i += warps) sum += w[i * columns + j] * v[i];
    __syncthreads();  // the columns before may still be read
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= kWarp || j >= columns) continue;
#pragma unroll 1
    for (int warp = 1; warp < warps; ++warp) sum += partial[warp * kWarp + threadIdx.x];
    out(j, sum);
  }
}

// Statistics of the sample's hidden features, z(h), or those that were found before; by the whole block.
template <class acc_t, class Z>
__device__ __forceinline__ NormNumbers<acc_t> block_norm(const Norm& norm, int hidden, Z z) {
  NormNumbers<acc_t> numbers{0, 1, 0, 0};
  if (!of_samples(norm.kind)) return numbers;
  acc_t sum = 0, squares = 0;
  if (norm.kind == NormKind::kLayer) {
    for (int h = threadIdx.x; h < hidden; h += blockDim.x) sum += z(h);
    numbers.mean = block_sum(sum) / acc_t(hidden);
  }
  for (int h = threadIdx.x; h < hidden; h += blockDim.x) {
    const acc_t distance = z(h) - numbers.mean;
    squares += distance * distance;
  }
  numbers.rstd = rstd_of(block_sum(squares) / acc_t(hidden), norm.eps);
  return numbers;
}

template <class scalar_t, int V>
__global__ void __launch_bounds__(kOnChipThreads, kFewBlocks)
    gated_shrink_on_chip(const __grid_constant__ GatedShrink op, const __grid_constant__ OnChip plan,
                         const __grid_constant__ Divisor channels, const __grid_constant__ StateOffsets layout) {
  using acc_t = Accumulator<scalar_t>;
  __shared__ OnChipGate<acc_t> gate;
  const OnChipPlace at(plan, op.rows, channels, V);
  const int length = int(op.rows.length);
  const int64_t n = blockIdx.x;
  const int hidden = int(op.gate.hidden), outputs = int(op.gate.outputs);
  const Norm& norm = op.gate.norm;
  acc_t* state = static_cast<acc_t*>(op.state);

  Packed<scalar_t, V> held[kOnChipSlots<V>];
  hold(held, at, length, static_cast<const scalar_t*>(op.x) + at.row * length);
  const acc_t mean = group_sum(held_abs_sum(held, at, length), 1 << plan.lane_bits) / acc_t(length);
  if (at.first) {
    gate.row[at.c] = mean;
    static_cast<acc_t*>(op.mean)[at.row] = mean;
  }
  acc_t statistic = mean;
  if (op.per_sample) statistic = block_sum(at.first ? mean : acc_t(0)) / acc_t(op.rows.channels);
  __syncthreads();
  multiply(op.gate.w1, hidden, op.rows.channels, gate.row, [&](int h, acc_t sum) {
    const acc_t z = sum + value_or<acc_t>(op.gate.b1, h, 0);
    gate.hidden[h] = z;
    state[layout.hidden + n * hidden + h] = z;
  });
  __syncthreads();
  NormNumbers<acc_t> numbers = block_norm<acc_t>(norm, hidden, [&](int h) { return gate.hidden[h]; });
  for (int h = threadIdx.x; h < hidden; h += blockDim.x) {
    if (norm.kind == NormKind::kRunning) {
      numbers.mean = value_or<acc_t>(norm.running_mean, h, 0);
      numbers.rstd = rstd_of(value_or<acc_t>(norm.running_var, h, 1), norm.eps);
      if (n == 0) state[layout.norm_mean + h] = numbers.mean;
      if (n == 0) state[layout.norm_rstd + h] = numbers.rstd;
    }
    gate.hidden[h] = activation(norm, h, numbers.xhat(gate.hidden[h]));
  }
  __syncthreads();
  multiply(op.gate.w2, outputs, hidden, gate.hidden, [&](int k, acc_t sum) {
    const acc_t alpha = sigmoid(sum + value_or<acc_t>(op.gate.b2, k, 0));
    gate.output[k] = alpha;
    state[layout.alpha + n * outputs + k] = alpha;
  });
  __syncthreads();
  const acc_t alpha = gate.output[outputs == 1 || !at.exists ? 0 : at.c];
  shrink_held(held, at, length, relu(alpha * statistic), op.residual, op.y, op.mask);
}

// dx of a sample, and what the gradients of the weights are made of: dz2, dh, and where by_sample the norm's numbers.
template <class scalar_t, int V>
__global__ void __launch_bounds__(kOnChipThreads, kFewBlocks)
    gated_shrink_backward_on_chip(const __grid_constant__ GatedShrinkBackward op, const __grid_constant__ OnChip plan,
                                  const __grid_constant__ Divisor channels, const __grid_constant__ GateBackward to) {
  using acc_t = Accumulator<scalar_t>;
  __shared__ OnChipGate<acc_t> gate;
  const OnChipPlace at(plan, op.rows, channels, V);
  const int length = int(op.rows.length);
  const int64_t n = blockIdx.x;
  const int hidden = int(op.gate.hidden), outputs = int(op.gate.outputs);
  const Norm& norm = op.gate.norm;
  const acc_t* state = static_cast<const acc_t*>(op.state);
  const acc_t* z1 = state + to.layout.hidden + n * hidden;

  Packed<scalar_t, V> held[kOnChipSlots<V>];
  unsigned word[kOnChipSlots<V>];
  hold_gradient(held, word, at, length, static_cast<const scalar_t*>(op.grad) + at.row * length, op.mask);
  const acc_t active_sum = group_sum(held_active_sum(held, word, at, length), 1 << plan.lane_bits);

  acc_t mean = 0, alpha = 0;
  if (at.exists) {
    mean = static_cast<const acc_t*>(op.mean)[at.row];
    alpha = state[to.layout.alpha + n * outputs + (outputs == 1 ? 0 : at.c)];
  }
  acc_t statistic = mean;
  if (op.per_sample) statistic = block_sum(at.first ? mean : acc_t(0)) / acc_t(op.rows.channels);
  const acc_t dtau = !at.first || alpha * statistic < acc_t(0) ? acc_t(0) : -active_sum;
  acc_t dstatistic = dtau * alpha;
  if (op.per_sample) dstatistic = block_sum(dstatistic) / acc_t(op.rows.channels);
  acc_t dalpha = dtau * statistic;
  if (outputs == 1) dalpha = block_sum(dalpha);
  if (at.first && (outputs != 1 || at.c == 0)) {
    const acc_t dz2 = dalpha * alpha * (acc_t(1) - alpha);
    gate.output[at.c] = dz2;
    static_cast<acc_t*>(to.dz2)[n * outputs + at.c] = dz2;
  }
  NormNumbers<acc_t> numbers = block_norm<acc_t>(norm, hidden, [&](int h) { return z1[h]; });
  __syncthreads();
  const auto numbers_of = [&](int h) {
    if (norm.kind != NormKind::kRunning) return numbers;
    return NormNumbers<acc_t>{state[to.layout.norm_mean + h], state[to.layout.norm_rstd + h], 0, 0};
  };
  multiply_transposed(op.gate.w2, outputs, hidden, gate.output, gate.partial, [&](int h, acc_t da) {
    const acc_t dh = activation(norm, h, numbers_of(h).xhat(z1[h])) <= acc_t(0) ? acc_t(0) : da;
    static_cast<acc_t*>(to.dh)[n * hidden + h] = dh;
    gate.hidden[h] = dh * value_or<acc_t>(norm.weight, h, 1);
  });
  __syncthreads();
  if (to.by_sample) {
    acc_t dh = 0, dh_xhat = 0;
    for (int h = threadIdx.x; h < hidden; h += blockDim.x) {
      dh += gate.hidden[h];
      dh_xhat += gate.hidden[h] * numbers.xhat(z1[h]);
    }
    dh = block_sum(dh);
    dh_xhat = block_sum(dh_xhat);
    if (threadIdx.x == 0) {
      acc_t* sample_norm = static_cast<acc_t*>(to.sample_norm);
      acc_t* part_sums = static_cast<acc_t*>(to.part_sums);
      sample_norm[n] = numbers.mean;
      sample_norm[to.samples + n] = numbers.rstd;
      part_sums[n] = dh;
      part_sums[to.samples + n] = dh_xhat;
    }
    if (norm.kind == NormKind::kLayer) numbers.dh = dh / acc_t(hidden);
    numbers.dh_xhat = dh_xhat / acc_t(hidden);
  }
  if (op.dx == nullptr) return;
  for (int h = threadIdx.x; h < hidden; h += blockDim.x) {
    gate.hidden[h] = numbers_of(h).gradient(gate.hidden[h], z1[h]);
  }
  __syncthreads();
  multiply_transposed(op.gate.w1, hidden, op.rows.channels, gate.hidden, gate.partial,
                      [&](int c, acc_t dmean) { gate.row[c] = dmean; });
  __syncthreads();
  // The row's first thread alone has d_statistic where it is the row's own.
  if (at.first) {
    gate.row[at.c] = (gate.row[at.c] + dstatistic + value_or<acc_t>(op.grad_mean, at.row, 0)) / acc_t(length);
  }
  __syncthreads();
  if (!at.exists) return;
  combine_held(held, word, at, length, gate.row[at.c], static_cast<scalar_t*>(op.dx) + at.row * length);
}

// Every way to choose V has room on the chip if V = 1 has: the question the workspace asks, which knows no alignment.
bool always_on_chip(const Rows& rows, const Gate& gate) { return plan_gated_on_chip(rows, gate, 1).fits; }

AbsMean mean_of(const GatedShrink& op) { return {op.dtype, op.x, op.mean, nullptr, op.rows, false}; }

// Four launches: means, two of the gate, and x once more.
struct OffChip {
  GateForward gate;
  void* means = nullptr;  // what abs_mean needs
  int64_t bytes;

  OffChip(const GatedShrink& op, void* workspace) {
    Carve carve(workspace, op.dtype);
    gate = gate_forward_of(op, carve);
    means = carve.take(ceil_div(abs_mean_workspace(mean_of(op)), accumulator_bytes(op.dtype)));
    bytes = carve.used();
  }
};

cudaError_t forward_off_chip(const GatedShrink& op, void* workspace, cudaStream_t stream) {
  const OffChip parts(op, workspace);
  DRSN_CUDA_TRY(abs_mean(mean_of(op), parts.means, stream));
  DRSN_CUDA_TRY(gate_forward(op.dtype, parts.gate, stream));
  const void* alpha = static_cast<const char*>(op.state) + parts.gate.layout.alpha * accumulator_bytes(op.dtype);
  return shrink_from_means(
      {op.dtype, op.x, op.residual, op.y, RowValues{alpha, op.gate.outputs, op.gate.outputs == 1 ? 0 : 1},
       op.per_sample ? parts.gate.statistic : op.mean, op.mask, op.rows, op.per_sample},
      stream);
}

// Backwards likewise: sums over rows, two of the gate, and the gradient once more.
struct BackwardParts {
  GateBackward gate;
  void* active_sum = nullptr;  // this and the rest only off the chip
  void* share = nullptr;
  void* sums = nullptr;  // what row_sums needs
  int64_t bytes;

  BackwardParts(const GatedShrinkBackward& op, void* workspace) {
    Carve carve(workspace, op.dtype);
    gate = gate_backward_of(op, carve);
    if (!always_on_chip(op.rows, op.gate)) {
      active_sum = carve.take(op.rows.samples * op.rows.channels);
      share = carve.take(op.rows.samples * op.rows.channels);
      sums = carve.take(Reduction(row_axes(op.rows, false)).workspace_elements());
    }
    bytes = carve.used();
  }
};

cudaError_t backward_off_chip(const GatedShrinkBackward& op, BackwardParts& parts, cudaStream_t stream) {
  DRSN_CUDA_TRY(row_sums(op, parts.active_sum, parts.sums, stream));
  parts.gate.active_sum = parts.active_sum;
  if (op.dx != nullptr) parts.gate.share = parts.share;
  DRSN_CUDA_TRY(gate_backward(op.dtype, parts.gate, stream));
  if (op.dx == nullptr) return cudaSuccess;
  const RowValues share{parts.share, op.rows.channels, 1};
  return combine({op.dtype, op.grad, share, op.mask, kShrinkPlanes, op.dx, op.rows}, stream);
}

}  // namespace

int64_t gated_shrink_workspace(const GatedShrink& op) {
  return always_on_chip(op.rows, op.gate) ? 0 : OffChip(op, nullptr).bytes;
}

cudaError_t gated_shrink(const GatedShrink& op, void* workspace, cudaStream_t stream) {
  return dispatch(
      op.dtype, [&](int V) { return aligned(op.x, op.y, op.residual) && vectors_fit(op.rows, V); },
      [&](auto scalar, auto V) {
        const OnChip plan = plan_gated_on_chip(op.rows, op.gate, V);
        if (!plan.fits) return forward_off_chip(op, workspace, stream);
        return launch(&gated_shrink_on_chip<decltype(scalar), V>, plan.blocks, plan.threads, stream, op, plan,
                      Divisor(op.rows.channels), StateOffsets(op.rows.samples, op.gate));
      });
}

int64_t gated_shrink_backward_workspace(const GatedShrinkBackward& op) { return BackwardParts(op, nullptr).bytes; }

cudaError_t gated_shrink_backward(const GatedShrinkBackward& op, void* workspace, cudaStream_t stream) {
  BackwardParts parts(op, workspace);
  return dispatch(
      op.dtype, [&](int V) { return aligned(op.grad, op.dx) && vectors_fit(op.rows, V); },
      [&](auto scalar, auto V) {
        const OnChip plan = plan_gated_on_chip(op.rows, op.gate, V);
        if (!plan.fits) return backward_off_chip(op, parts, stream);
        if (parts.gate.by_sample) parts.gate.parts = 1;
        DRSN_CUDA_TRY(launch(&gated_shrink_backward_on_chip<decltype(scalar), V>, plan.blocks, plan.threads, stream, op,
                             plan, Divisor(op.rows.channels), parts.gate));
        return parts.gate.needs_weights() ? gate_backward_products(op.dtype, parts.gate, stream) : cudaSuccess;
      });
}

}  // namespace drsn::cuda
