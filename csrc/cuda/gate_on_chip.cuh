// The gate of one sample, in the block that holds the sample on chip.
#pragma once

#include "cuda/gate.cuh"
#include "cuda/plan.h"

namespace drsn::cuda {

// The shared memory of a block.
template <class acc_t>
struct OnChipGate {
  acc_t channel[kOnChipThreads];  // m; in the backward pass d_m
  acc_t hidden[kOnChipHidden];
  acc_t output[kOnChipThreads];  // alpha; in the backward pass dz2
  acc_t partial[kOnChipThreads];
};

// out(i, sum over k of w[i][k] * v[k]) for each row i; a warp makes one sum.
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

// out(j, sum over i of w[i][j] * v[i]) for each column j; one thread of each warp shares in a sum.
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

// From the means of sample n in gate.channel to its alpha in gate.output; writes the state. The whole block must call
// it.
template <class acc_t>
__device__ __forceinline__ void gate_forward_on_chip(OnChipGate<acc_t>& gate, const GatedShrink& op,
                                                     const StateOffsets& in_state, int64_t n) {
  const int hidden = int(op.gate.hidden), outputs = int(op.gate.outputs);
  const Norm& norm = op.gate.norm;
  acc_t* state = static_cast<acc_t*>(op.state);
  __syncthreads();
  multiply(op.gate.w1, hidden, op.rows.channels, gate.channel, [&](int h, acc_t sum) {
    const acc_t z = sum + value_or<acc_t>(op.gate.b1, h, 0);
    gate.hidden[h] = z;
    state[in_state.hidden + n * hidden + h] = z;
  });
  __syncthreads();
  NormNumbers<acc_t> numbers{0, 1, 0, 0};
  if (of_samples(norm.kind)) {
    numbers = sample_numbers<WholeBlock, acc_t>(norm, hidden, [&](int h) { return gate.hidden[h]; });
  }
  for (int h = threadIdx.x; h < hidden; h += blockDim.x) {
    if (norm.kind == NormKind::kRunning) {
      numbers = running_numbers<acc_t>(norm, h);
      if (n == 0) state[in_state.norm_mean + h] = numbers.mean;
      if (n == 0) state[in_state.norm_rstd + h] = numbers.rstd;
    }
    gate.hidden[h] = activation(norm, h, numbers.xhat(gate.hidden[h]));
  }
  __syncthreads();
  multiply(op.gate.w2, outputs, hidden, gate.hidden, [&](int k, acc_t sum) {
    const acc_t alpha = sigmoid(sum + value_or<acc_t>(op.gate.b2, k, 0));
    gate.output[k] = alpha;
    state[in_state.alpha + n * outputs + k] = alpha;
  });
  __syncthreads();
}

// From the dz2 of sample n in gate.output to the gate's part of its d_m in gate.channel, where dx is wanted; writes dh,
// and the numbers of a norm over the sample. The whole block must call it.
template <class acc_t>
__device__ __forceinline__ void gate_backward_on_chip(OnChipGate<acc_t>& gate, const GateBackward& op, int64_t n) {
  const int hidden = int(op.gate.hidden), outputs = int(op.gate.outputs);
  const Norm& norm = op.gate.norm;
  const acc_t* state = static_cast<const acc_t*>(op.state);
  const acc_t* z1 = state + op.at.hidden + n * hidden;
  NormNumbers<acc_t> numbers{0, 1, 0, 0};
  if (op.by_sample) numbers = sample_numbers<WholeBlock, acc_t>(norm, hidden, [&](int h) { return z1[h]; });
  __syncthreads();
  const auto numbers_of = [&](int h) {
    if (norm.kind != NormKind::kRunning) return numbers;
    return NormNumbers<acc_t>{state[op.at.norm_mean + h], state[op.at.norm_rstd + h], 0, 0};
  };
  multiply_transposed(op.gate.w2, outputs, hidden, gate.output, gate.partial, [&](int h, acc_t da) {
    const acc_t dh = activation_gradient(norm, h, numbers_of(h).xhat(z1[h]), da);
    static_cast<acc_t*>(op.dh)[n * hidden + h] = dh;
    gate.hidden[h] = dh * value_or<acc_t>(norm.weight, h, 1);
  });
  __syncthreads();
  if (op.by_sample) {
    acc_t dh = 0, dh_xhat = 0;
    for (int h = threadIdx.x; h < hidden; h += blockDim.x) {
      dh += gate.hidden[h];
      dh_xhat += gate.hidden[h] * numbers.xhat(z1[h]);
    }
    dh = block_sum(dh);
    dh_xhat = block_sum(dh_xhat);
    if (threadIdx.x == 0) {
      acc_t* sample_norm = static_cast<acc_t*>(op.sample_norm);
      acc_t* piece_sums = static_cast<acc_t*>(op.piece_sums);
      sample_norm[n] = numbers.mean;
      sample_norm[op.rows.samples + n] = numbers.rstd;
      piece_sums[n] = dh;
      piece_sums[op.rows.samples + n] = dh_xhat;
    }
    numbers.set_means(norm.kind, dh, dh_xhat, acc_t(hidden));
  }
  if (op.dx == nullptr) return;
  for (int h = threadIdx.x; h < hidden; h += blockDim.x) {
    gate.hidden[h] = numbers_of(h).gradient(gate.hidden[h], z1[h]);
  }
  __syncthreads();
  multiply_transposed(op.gate.w1, hidden, op.rows.channels, gate.hidden, gate.partial,
                      [&](int c, acc_t dmean) { gate.channel[c] = dmean; });
  __syncthreads();
}

}  // namespace drsn::cuda
