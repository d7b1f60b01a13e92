// x = norm(z) with a BatchNorm: the channels' statistics, from z in pieces held on chip, and x of an element.
#pragma once

#include "cuda/gate_math.cuh"
#include "cuda/launch.cuh"
#include "cuda/on_chip.cuh"

namespace drsn::cuda {

// Every kernel computes x the same way. The mean is subtracted first, so that a large mean costs no precision.
template <class acc_t>
struct InputNorm {
  const acc_t *mean, *rstd, *weight, *bias;  // of the channels; the last two may be null

  struct Channel {
    acc_t mean, rstd, scale, bias;
    __device__ __forceinline__ acc_t x(acc_t z) const { return fma(z - mean, scale, bias); }
    __device__ __forceinline__ acc_t xhat(acc_t z) const { return (z - mean) * rstd; }
  };
  InputNorm(const Norm& norm, const void* input_state, int64_t channels)
      : mean(static_cast<const acc_t*>(input_state)),
        rstd(mean + channels),
        weight(static_cast<const acc_t*>(norm.weight)),
        bias(static_cast<const acc_t*>(norm.bias)) {}
  __device__ __forceinline__ Channel channel(int64_t c) const {
    return {mean[c], rstd[c], value_or<acc_t>(weight, c, 1) * rstd[c], value_or<acc_t>(bias, c, 0)};
  }
};

// The pieces of a row of z.
struct RowPieces {
  int64_t length, row_length, count;  // of a piece, of a row; pieces of a row
  Divisor of_row;
  explicit RowPieces(int64_t row)
      : length(std::min<int64_t>(row, kStatisticsLength)),
        row_length(row),
        count(ceil_div(row, kStatisticsLength)),
        of_row(count) {}
};

// The mean of each piece, and the sum of the squared distances from it: nothing cancels.
template <class scalar_t, int V>
__global__ void __launch_bounds__(kOnChipThreads, kFewBlocks)
    piece_statistics(const scalar_t* z, const __grid_constant__ Rows rows, const __grid_constant__ OnChip plan,
                     const __grid_constant__ RowPieces pieces, void* statistics) {
  using acc_t = Accumulator<scalar_t>;
  const OnChipPlace at(plan, rows, pieces.of_row, V);  // n is the row of z, c the piece
  const int64_t begin = at.c * pieces.length;
  const int length = int(min(pieces.length, pieces.row_length - begin));
  Packed<scalar_t, V> held[kOnChipSlots<V>];
  // Pieces of a block may differ in length: the loops' bound is that of the longest.
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= pieces.length) break;
    const int position = at.position + i * at.step;
    held[i] = load_if<V>(at.exists && position < length, z + at.n * pieces.row_length + begin + position);
  }
  acc_t sum = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= pieces.length) break;
#pragma unroll
    for (int j = 0; j < V; ++j) sum += acc_t(widen(unpack(held[i]).value[j]));
  }
  const acc_t mean = lane_sum(sum, 1 << plan.lane_bits) / acc_t(length);
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= pieces.length) break;
    const bool inside = at.exists && at.position + i * at.step < length;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const acc_t distance = acc_t(widen(unpack(held[i]).value[j])) - mean;
      squares += inside ? distance * distance : acc_t(0);
    }
  }
  squares = lane_sum(squares, 1 << plan.lane_bits);
  if (!at.first) return;
  acc_t* out = static_cast<acc_t*>(statistics);
  out[at.row] = mean;
  out[rows.samples * rows.channels + at.row] = squares;
}

// mean and rstd of each channel, a block per channel: from its pieces, or the running statistics.
template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    channel_statistics(const __grid_constant__ Norm norm, const __grid_constant__ Rows rows,
                       const __grid_constant__ RowPieces pieces, const acc_t* statistics, acc_t* input_state) {
  const int64_t c = blockIdx.x, channels = rows.channels;
  const int64_t total = rows.samples * pieces.count;
  const acc_t* squares_of = statistics + rows.samples * channels * pieces.count;
  NormNumbers<acc_t> numbers;
  if (norm.kind == NormKind::kRunning) {
    numbers = running_numbers<acc_t>(norm, c);
  } else {
    // The length of piece i of the channel, and its place among all pieces.
    const auto locate = [&](int64_t i, int64_t* piece) {
      const int64_t n = pieces.of_row.divide(i);
      *piece = n * channels * pieces.count + c * pieces.count + (i - n * pieces.count);
      return acc_t(min(pieces.length, pieces.row_length - (i - n * pieces.count) * pieces.length));
    };
    const acc_t count = acc_t(rows.samples) * acc_t(rows.length);
    acc_t sum = 0, squares = 0;
    int64_t piece;
    for (int64_t i = threadIdx.x; i < total; i += kThreads) {
      const acc_t length = locate(i, &piece);
      sum += length * statistics[piece];
    }
    const acc_t mean = block_sum(sum) / count;
    for (int64_t i = threadIdx.x; i < total; i += kThreads) {
      const acc_t length = locate(i, &piece);
      const acc_t distance = statistics[piece] - mean;
      squares += squares_of[piece] + length * (distance * distance);
    }
    squares = block_sum(squares);
    numbers = {mean, rstd_of(squares / count, norm.eps), 0, 0};
    if (threadIdx.x == 0) update_running(norm, c, mean, squares, count);
  }
  if (threadIdx.x > 0) return;
  input_state[c] = numbers.mean;
  input_state[channels + c] = numbers.rstd;
}

// Accumulators of scratch memory for input_statistics.
inline int64_t input_statistics_workspace(const Norm& norm, const Rows& rows) {
  return norm.kind == NormKind::kBatch ? 2 * rows.samples * rows.channels * RowPieces(rows.length).count : 0;
}

// Writes input_state. Every block reads the counter of batches: a later kernel counts this batch.
template <class scalar_t, int V>
cudaError_t input_statistics(const Norm& norm, const Rows& rows, const void* z, void* input_state, void* workspace,
                             cudaStream_t stream) {
  using acc_t = Accumulator<scalar_t>;
  const RowPieces pieces(rows.length);
  if (norm.kind == NormKind::kBatch) {
    const Rows of_pieces{rows.samples * rows.channels, pieces.count, pieces.length, false};
    const OnChip plan = plan_on_chip(of_pieces, false, V);
    DRSN_CUDA_TRY(launch(&piece_statistics<scalar_t, V>, plan.blocks, plan.threads, stream,
                         static_cast<const scalar_t*>(z), of_pieces, plan, pieces, workspace));
  }
  return launch(&channel_statistics<acc_t>, rows.channels, kThreads, stream, norm, rows, pieces,
                static_cast<const acc_t*>(workspace), static_cast<acc_t*>(input_state));
}

}  // namespace drsn::cuda
