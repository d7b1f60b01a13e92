// The gate over a whole batch, forward: two layers of tiles, one launch each, or one for both where one block makes
// them.
//   hidden_layer  z1 = w1 m + b1; for kBatch mean and squares of each piece of the batch
//   alpha_layer   alpha = sigmoid(w2 relu(norm(z1)) + b2), the running statistics, the samples' statistics
#include "cuda/gate.cuh"
#include "cuda/gate_tiles.cuh"

namespace drsn::cuda {
namespace {

template <class acc_t>
__device__ __forceinline__ void hidden_layer(const GateForward& op, const NormPieces& pieces, Tiles<acc_t>& tiles,
                                             int64_t block) {
  const int64_t hidden = op.gate.hidden, channels = op.rows.channels;
  const int64_t across = ceil_div(hidden, kTile);
  const int64_t piece = block / across;
  const int64_t h0 = (block - piece * across) * kTile;
  const int64_t begin = piece * pieces.tiles * kTile;
  const int64_t end = min(begin + pieces.tiles * kTile, op.rows.samples);
  RowMajor<acc_t> means{{static_cast<const acc_t*>(op.mean), end, channels}};
  RowMajor<acc_t> weights{{static_cast<const acc_t*>(op.gate.w1), hidden, channels}};
  acc_t* z1 = static_cast<acc_t*>(op.state) + op.at.hidden;
#pragma unroll 1
  for (int64_t n0 = begin; n0 < end; n0 += kTile) {
    acc_t sums[kColumns];
    products(tiles, means, weights, n0, h0, 0, channels, sums);
    for_each_sum(n0, h0, end, hidden, sums, [&](int64_t n, int64_t h, acc_t sum) {
      z1[n * hidden + h] = sum + value_or<acc_t>(op.gate.b1, h, 0);
    });
  }
  if (op.gate.norm.kind != NormKind::kBatch) return;

  __syncthreads();  // z1 of this piece is complete
  const int64_t h = h0 + threadIdx.x % kTile;
  acc_t sum = 0, squares = 0;
  for (int64_t n = begin + threadIdx.x / kTile; n < end && h < hidden; n += kThreadsPerPlace) sum += z1[n * hidden + h];
  const acc_t mean = place_sum(tiles, sum) / acc_t(end - begin);
  for (int64_t n = begin + threadIdx.x / kTile; n < end && h < hidden; n += kThreadsPerPlace) {
    const acc_t distance = z1[n * hidden + h] - mean;
    squares += distance * distance;
  }
  squares = place_sum(tiles, squares);
  if (threadIdx.x < kTile && h < hidden) {
    acc_t* sums = static_cast<acc_t*>(op.piece_sums) + piece * 2 * hidden + h;
    sums[0] = mean;
    sums[hidden] = squares;
  }
}

// relu(norm(z1)) of the samples of a block.
template <class acc_t>
struct Activation {
  static constexpr bool kAlongK = true;
  const GateForward& op;
  const NormPieces& pieces;
  Tiles<acc_t>& tiles;
  bool writes;  // this block leaves the statistics in state
  int64_t count;

  // The batch's statistics of feature h, from those of its pieces.
  __device__ __forceinline__ NormNumbers<acc_t> batch_numbers(int64_t h) const {
    const Norm& norm = op.gate.norm;
    const int64_t hidden = op.gate.hidden, samples = op.rows.samples;
    const int64_t span = pieces.tiles * kTile;
    const acc_t* piece_sums = static_cast<const acc_t*>(op.piece_sums);
    acc_t sum = 0, squares = 0;
    for (int64_t p = threadIdx.x / kTile; p < pieces.count && h < hidden; p += kThreadsPerPlace) {
      sum += acc_t(min(span, samples - p * span)) * piece_sums[p * 2 * hidden + h];
    }
    const acc_t mean = place_sum(tiles, sum) / acc_t(samples);
    for (int64_t p = threadIdx.x / kTile; p < pieces.count && h < hidden; p += kThreadsPerPlace) {
      const acc_t distance = piece_sums[p * 2 * hidden + h] - mean;
      squares += piece_sums[(p * 2 + 1) * hidden + h] + acc_t(min(span, samples - p * span)) * (distance * distance);
    }
    squares = place_sum(tiles, squares);
    if (writes && threadIdx.x < kTile && h < hidden) update_running(norm, h, mean, squares, acc_t(samples));
    return {mean, rstd_of(squares / acc_t(samples), norm.eps), 0, 0};
  }

  __device__ __forceinline__ void prepare(int64_t, int64_t h0, bool) const {
    const NormKind kind = op.gate.norm.kind;
    if (op.by_sample) return;
    const int64_t h = h0 + threadIdx.x % kTile;
    const bool exists = h < op.gate.hidden;
    NormNumbers<acc_t> numbers{0, 1, 0, 0};
    if (kind == NormKind::kRunning && exists) numbers = running_numbers<acc_t>(op.gate.norm, h);
    if (kind == NormKind::kBatch) numbers = batch_numbers(h);
    if (threadIdx.x < kTile) tiles.norm[threadIdx.x] = numbers;
    if (writes && kind != NormKind::kNone && threadIdx.x < kTile && exists) {
      static_cast<acc_t*>(op.state)[op.at.norm_mean + h] = numbers.mean;
      static_cast<acc_t*>(op.state)[op.at.norm_rstd + h] = numbers.rstd;
    }
    __syncthreads();
  }
  __device__ __forceinline__ acc_t at(int64_t n, int64_t h) const {
    const acc_t z = static_cast<const acc_t*>(op.state)[op.at.hidden + n * op.gate.hidden + h];
    return activation(op.gate.norm, h, tiles.norm[(op.by_sample ? n : h) % kTile].xhat(z));
  }
};

template <class acc_t>
__device__ __forceinline__ void alpha_layer(const GateForward& op, const NormPieces& pieces, Tiles<acc_t>& tiles,
                                            int64_t block) {
  const int64_t outputs = op.gate.outputs, hidden = op.gate.hidden, samples = op.rows.samples;
  const int64_t across = ceil_div(outputs, kTile);
  const int64_t tile = block / across;
  const int64_t k0 = (block - tile * across) * kTile;
  const int64_t n0 = tile * kTile;
  const bool first = threadIdx.x % kWarp == 0;
#pragma unroll 1
  for (int i = threadIdx.x / kWarp; i < min(int64_t(kTile), samples - n0); i += kThreads / kWarp) {
    if (op.by_sample) {
      const acc_t* z1 = static_cast<const acc_t*>(op.state) + op.at.hidden + (n0 + i) * hidden;
      const auto numbers = sample_numbers<WholeWarp, acc_t>(op.gate.norm, hidden, [&](int64_t h) { return z1[h]; });
      if (first) tiles.norm[i] = numbers;
    }
    if (op.statistic != nullptr && k0 == 0) {
      const acc_t* means = static_cast<const acc_t*>(op.mean) + (n0 + i) * op.rows.channels;
      const acc_t statistic = sample_statistic(means, op.rows.channels);
      if (first) static_cast<acc_t*>(op.statistic)[n0 + i] = statistic;
    }
  }
  Activation<acc_t> activations{op, pieces, tiles, block == 0, samples};
  RowMajor<acc_t> weights{{static_cast<const acc_t*>(op.gate.w2), outputs, hidden}};
  acc_t sums[kColumns];
  products(tiles, activations, weights, n0, k0, 0, hidden, sums);
  acc_t* alpha = static_cast<acc_t*>(op.state) + op.at.alpha;
  for_each_sum(n0, k0, samples, outputs, sums, [&](int64_t n, int64_t k, acc_t sum) {
    alpha[n * outputs + k] = sigmoid(sum + value_or<acc_t>(op.gate.b2, k, 0));
  });
}

template <class acc_t>
__global__ void __launch_bounds__(kThreads, kGateBlocks<acc_t>)
    gate_layers(const __grid_constant__ GateForward op, const __grid_constant__ NormPieces pieces,
                const __grid_constant__ Layers layers) {
  wait_for_previous();
  __shared__ Tiles<acc_t> tiles;
  if (blockIdx.x < layers.first) hidden_layer(op, pieces, tiles, blockIdx.x);
  if (layers.both()) wait_for_cluster();
  if (blockIdx.x < layers.second) alpha_layer(op, pieces, tiles, blockIdx.x);
  if (layers.second > 0) count_batch(op.gate.norm);  // block 0 alone reads the counter, and all of it is past that
}

template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    sample_statistics_kernel(const acc_t* mean, int64_t samples, int64_t channels, acc_t* statistic) {
  wait_for_previous();
  const int64_t n = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (n >= samples) return;
  const acc_t value = sample_statistic(mean + n * channels, channels);
  if (threadIdx.x % kWarp == 0) statistic[n] = value;
}

}  // namespace

GateForward::GateForward(const GatedShrink& op, Carve& carve)
    : GatedShrink(op),
      at(rows.samples, gate),
      by_sample(of_samples(gate.norm.kind)),
      statistic(nullptr),
      piece_sums(nullptr) {
  if (per_sample) statistic = carve.take(rows.samples);
  if (gate.norm.kind == NormKind::kBatch) {
    piece_sums = carve.take(NormPieces(rows.samples).count * 2 * gate.hidden);
  }
}

cudaError_t gate_forward(const GateForward& op, cudaStream_t stream) {
  const NormPieces pieces(op.rows.samples);
  const Layers all{pieces.count * ceil_div(op.gate.hidden, kTile),
                   ceil_div(op.rows.samples, kTile) * ceil_div(op.gate.outputs, kTile)};
  return dispatch_accumulator(op.dtype, [&](auto accumulator) {
    return launch_layers(&gate_layers<decltype(accumulator)>, all, stream, op, pieces);
  });
}

cudaError_t sample_statistics(DType dtype, const void* mean, const Rows& rows, void* statistic, cudaStream_t stream) {
  return dispatch_accumulator(dtype, [&](auto accumulator) {
    using acc_t = decltype(accumulator);
    return launch(&sample_statistics_kernel<acc_t>, ceil_div(rows.samples, kThreads / kWarp), kThreads, stream,
                  static_cast<const acc_t*>(mean), rows.samples, rows.channels, static_cast<acc_t*>(statistic));
  });
}

}  // namespace drsn::cuda
