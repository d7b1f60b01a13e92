// The gate over a whole batch, backward: two layers of tiles, one launch each, or one for both where they are small;
// and one launch more for a very long batch.
//   hidden_gradient  dz2; dh = [h > 0] w2^T dz2, and the sums over it that the norm's gradient needs
//   make_product     w1^T dz1 for the share of each row; dz1^T m and dz2^T a for the parameters' gradients; dz1, the
//                    gradient before the norm, is made on the way
//   add_pieces       adds up the parameters' gradients of pieces of the batch
#include "cuda/gate.cuh"
#include "cuda/gate_tiles.cuh"

namespace drsn::cuda {
namespace {

template <class acc_t>
__device__ __forceinline__ acc_t alpha_of(const GateBackward& op, int64_t n, int64_t c) {
  const acc_t* alpha = static_cast<const acc_t*>(op.state) + op.at.alpha;
  return alpha[n * op.gate.outputs + (op.gate.outputs == 1 ? 0 : c)];
}
// A row's gradient of tau. alpha and the statistic are never negative, so tau is never clamped.
template <class acc_t>
__device__ __forceinline__ acc_t dtau_of(const GateBackward& op, int64_t n, int64_t c) {
  return -static_cast<const acc_t*>(op.active_sum)[n * op.rows.channels + c];
}

// mean and rstd for feature h of sample n, as earlier kernels left them.
template <class acc_t>
__device__ __forceinline__ NormNumbers<acc_t> stored_numbers(const GateBackward& op, int64_t n, int64_t h) {
  if (op.gate.norm.kind == NormKind::kNone) return {0, 1, 0, 0};
  const acc_t* state = static_cast<const acc_t*>(op.state);
  if (!op.by_sample) return {state[op.at.norm_mean + h], state[op.at.norm_rstd + h], 0, 0};
  const acc_t* norm = static_cast<const acc_t*>(op.sample_norm);
  return {norm[n], norm[op.rows.samples + n], 0, 0};
}

// dz2 of the samples of a block.
template <class acc_t>
struct AlphaGradient {
  static constexpr bool kAlongK = true;
  const GateBackward& op;
  const Tiles<acc_t>& tiles;  // sample[0]: the statistic; sample[1]: d_alpha where there is one output
  bool writes;                // this block leaves dz2 in memory
  int64_t count;

  __device__ __forceinline__ void prepare(int64_t, int64_t, bool) const {}
  __device__ __forceinline__ acc_t at(int64_t n, int64_t k) const {
    const acc_t alpha = alpha_of<acc_t>(op, n, k);
    acc_t dalpha = tiles.sample[1][n % kTile];
    if (op.gate.outputs != 1) {
      const acc_t own = static_cast<const acc_t*>(op.mean)[n * op.rows.channels + k];
      dalpha = dtau_of<acc_t>(op, n, k) * (op.per_sample ? tiles.sample[0][n % kTile] : own);
    }
    const acc_t dz2 = sigmoid_gradient(dalpha, alpha);
    if (writes) static_cast<acc_t*>(op.dz2)[n * op.gate.outputs + k] = dz2;
    return dz2;
  }
};

// A sample's statistic where per_sample, and its sums over channels: d_alpha of the one output and d_statistic. One
// whole warp must call it.
template <class acc_t>
__device__ __forceinline__ void sample_sums(const GateBackward& op, int64_t n, acc_t (&sums)[3]) {
  const int64_t channels = op.rows.channels;
  const acc_t* mean = static_cast<const acc_t*>(op.mean) + n * channels;
  sums[0] = op.per_sample ? sample_statistic(mean, channels) : acc_t(0);
  acc_t dalpha = 0, dstatistic = 0;
  for (int64_t c = threadIdx.x % kWarp; c < channels; c += kWarp) {
    const acc_t alpha = alpha_of<acc_t>(op, n, c);
    const acc_t dtau = dtau_of<acc_t>(op, n, c);
    dalpha += dtau * (op.per_sample ? sums[0] : mean[c]);
    dstatistic += dtau * alpha;
  }
  sums[1] = warp_sum(dalpha);
  sums[2] = warp_sum(dstatistic);
}

template <class acc_t>
__device__ __forceinline__ void hidden_gradient(const GateBackward& op, const NormPieces& pieces, Tiles<acc_t>& tiles,
                                                int64_t block) {
  const Norm& norm = op.gate.norm;
  const int64_t outputs = op.gate.outputs, hidden = op.gate.hidden, samples = op.rows.samples;
  const int64_t across = ceil_div(hidden, kTile);
  const int64_t piece = block / across;
  const int64_t tile = block - piece * across;
  const int64_t h0 = tile * kTile;
  const int64_t begin = piece * pieces.tiles * kTile;
  const int64_t end = min(begin + pieces.tiles * kTile, samples);
  const bool writes = tile == 0;  // what does not depend on the features
  const acc_t* z1 = static_cast<const acc_t*>(op.state) + op.at.hidden;
  acc_t* piece_sums = static_cast<acc_t*>(op.piece_sums);
  AlphaGradient<acc_t> dz2{op, tiles, writes, end};
  ColumnMajor<acc_t> weights{{static_cast<const acc_t*>(op.gate.w2), hidden, hidden}};
  acc_t batch_dh = 0, batch_dh_xhat = 0;
#pragma unroll 1
  for (int64_t n0 = begin; n0 < end; n0 += kTile) {
    __syncthreads();  // the tile before may still be read
#pragma unroll 1
    for (int i = threadIdx.x / kWarp; i < min(int64_t(kTile), end - n0); i += kThreads / kWarp) {
      const bool first = threadIdx.x % kWarp == 0;
      if (op.per_sample || outputs == 1) {
        acc_t sums[3];
        sample_sums(op, n0 + i, sums);
        if (first) {
          tiles.sample[0][i] = sums[0];
          tiles.sample[1][i] = sums[1];
          if (writes && op.per_sample) static_cast<acc_t*>(op.dstatistic)[n0 + i] = sums[2];
        }
      }
      if (op.by_sample) {
        const acc_t* z = z1 + (n0 + i) * hidden;
        const auto numbers = sample_numbers<WholeWarp, acc_t>(norm, hidden, [&](int64_t h) { return z[h]; });
        if (first) tiles.norm[i] = numbers;
        if (first && writes) {
          static_cast<acc_t*>(op.sample_norm)[n0 + i] = numbers.mean;
          static_cast<acc_t*>(op.sample_norm)[samples + n0 + i] = numbers.rstd;
        }
      }
    }
    acc_t sums[kColumns];
    products(tiles, dz2, weights, n0, h0, 0, outputs, sums);
    const int row = threadIdx.x / kThreadsPerPlace;
    const int64_t n = n0 + row;
    acc_t sample_dh = 0, sample_dh_xhat = 0;
    __syncthreads();  // from here the tiles hold weight * dh and weight * dh * xhat
#pragma unroll
    for (int q = 0; q < kColumns; ++q) {
      const int column = threadIdx.x % kThreadsPerPlace * kColumns + q;
      const int64_t h = h0 + column;
      acc_t dh = 0, xhat = 0;
      if (n < end && h < hidden) {
        xhat = (op.by_sample ? tiles.norm[row] : stored_numbers<acc_t>(op, n, h)).xhat(z1[n * hidden + h]);
        dh = activation_gradient(norm, h, xhat, sums[q]);
        static_cast<acc_t*>(op.dh)[n * hidden + h] = dh;
        dh *= value_or<acc_t>(norm.weight, h, 1);
      }
      sample_dh += dh;
      sample_dh_xhat += dh * xhat;
      tiles.left[row][column] = dh;
      tiles.right[row][column] = dh * xhat;
    }
    if (op.by_sample) {
#pragma unroll
      for (int d = kThreadsPerPlace / 2; d > 0; d /= 2) {
        sample_dh += __shfl_xor_sync(~0u, sample_dh, d);
        sample_dh_xhat += __shfl_xor_sync(~0u, sample_dh_xhat, d);
      }
      if (threadIdx.x % kThreadsPerPlace == 0 && n < end) {
        piece_sums[tile * 2 * samples + n] = sample_dh;
        piece_sums[(tile * 2 + 1) * samples + n] = sample_dh_xhat;
      }
    }
    __syncthreads();
    if (norm.kind == NormKind::kBatch) {
#pragma unroll
      for (int u = 0; u < kTile / kThreadsPerPlace; ++u) {
        batch_dh += tiles.left[threadIdx.x / kTile + u * kThreadsPerPlace][threadIdx.x % kTile];
        batch_dh_xhat += tiles.right[threadIdx.x / kTile + u * kThreadsPerPlace][threadIdx.x % kTile];
      }
    }
  }
  if (norm.kind != NormKind::kBatch) return;
  batch_dh = place_sum(tiles, batch_dh);
  batch_dh_xhat = place_sum(tiles, batch_dh_xhat);
  const int64_t h = h0 + threadIdx.x % kTile;
  if (threadIdx.x < kTile && h < hidden) {
    piece_sums[piece * 2 * hidden + h] = batch_dh;
    piece_sums[(piece * 2 + 1) * hidden + h] = batch_dh_xhat;
  }
}

// All that the norm's gradient needs, for kTile features from h0 or, where the norm is over each sample, for kTile
// samples from n0.
template <class acc_t>
__device__ __forceinline__ void prepare_norm(const GateBackward& op, Tiles<acc_t>& tiles, int64_t n0, int64_t h0) {
  const int64_t own = (op.by_sample ? n0 : h0) + threadIdx.x % kTile;
  const int64_t count = op.by_sample ? op.rows.samples : op.gate.hidden;
  NormNumbers<acc_t> numbers{0, 1, 0, 0};
  if (own < count) numbers = stored_numbers<acc_t>(op, own, own);
  if (op.pieces > 0) {
    const acc_t* piece_sums = static_cast<const acc_t*>(op.piece_sums);
    acc_t dh = 0, dh_xhat = 0;
    for (int64_t p = threadIdx.x / kTile; p < op.pieces && own < count; p += kThreadsPerPlace) {
      dh += piece_sums[p * 2 * count + own];
      dh_xhat += piece_sums[(p * 2 + 1) * count + own];
    }
    dh = place_sum(tiles, dh);
    dh_xhat = place_sum(tiles, dh_xhat);
    numbers.set_means(op.gate.norm.kind, dh, dh_xhat, acc_t(op.by_sample ? op.gate.hidden : op.rows.samples));
  }
  if (threadIdx.x < kTile) tiles.norm[threadIdx.x] = numbers;
  __syncthreads();
}

// dz1 with rows of samples, for w1^T dz1.
template <class acc_t>
struct HiddenGradientBySample {
  static constexpr bool kAlongK = true;
  const GateBackward& op;
  Tiles<acc_t>& tiles;
  int64_t count;

  __device__ __forceinline__ void prepare(int64_t n0, int64_t h0, bool first) const {
    if (first || !op.by_sample) prepare_norm(op, tiles, n0, h0);
  }
  __device__ __forceinline__ acc_t at(int64_t n, int64_t h) const {
    const int64_t i = n * op.gate.hidden + h;
    const acc_t z = static_cast<const acc_t*>(op.state)[op.at.hidden + i];
    const acc_t dh = static_cast<const acc_t*>(op.dh)[i] * value_or<acc_t>(op.gate.norm.weight, h, 1);
    return tiles.norm[(op.by_sample ? n : h) % kTile].gradient(dh, z);
  }
};

// dz1 with rows of features, for dz1^T m. A thread loads one feature alone and sums it.
template <class acc_t>
struct HiddenGradientByFeature {
  static constexpr bool kAlongK = false;
  const GateBackward& op;
  Tiles<acc_t>& tiles;
  int64_t count;
  acc_t dz1 = 0, dh = 0, dh_xhat = 0;

  __device__ __forceinline__ void prepare(int64_t h0, int64_t n0, bool first) const {
    if (first || op.by_sample) prepare_norm(op, tiles, n0, h0);
  }
  __device__ __forceinline__ acc_t at(int64_t h, int64_t n) {
    const int64_t i = n * op.gate.hidden + h;
    const acc_t z = static_cast<const acc_t*>(op.state)[op.at.hidden + i];
    const acc_t own = static_cast<const acc_t*>(op.dh)[i];
    const NormNumbers<acc_t>& numbers = tiles.norm[(op.by_sample ? n : h) % kTile];
    const acc_t gradient = numbers.gradient(own * value_or<acc_t>(op.gate.norm.weight, h, 1), z);
    dz1 += gradient;
    dh += own;
    dh_xhat += own * numbers.xhat(z);
    return gradient;
  }
};

// dz2 with rows of outputs. A thread loads one output alone and sums it.
template <class acc_t>
struct AlphaGradientByOutput {
  static constexpr bool kAlongK = false;
  const GateBackward& op;
  int64_t count;
  acc_t dz2 = 0;

  __device__ __forceinline__ void prepare(int64_t, int64_t, bool) const {}
  __device__ __forceinline__ acc_t at(int64_t k, int64_t n) {
    const acc_t v = static_cast<const acc_t*>(op.dz2)[n * op.gate.outputs + k];
    dz2 += v;
    return v;
  }
};

template <class acc_t>
struct ActivationByFeature {
  static constexpr bool kAlongK = false;
  const GateBackward& op;
  int64_t count;

  __device__ __forceinline__ void prepare(int64_t, int64_t, bool) const {}
  __device__ __forceinline__ acc_t at(int64_t h, int64_t n) const {
    const acc_t z = static_cast<const acc_t*>(op.state)[op.at.hidden + n * op.gate.hidden + h];
    return activation(op.gate.norm, h, stored_numbers<acc_t>(op, n, h).xhat(z));
  }
};

// The parameters' gradients, one after another.
struct Gradients {
  static constexpr int kCount = 6;
  void* data[kCount];
  int64_t size[kCount];

  explicit Gradients(const GateBackward& op)
      : data{op.dw1, op.db1, op.dnorm_weight, op.dnorm_bias, op.dw2, op.db2},
        size{op.gate.hidden * op.rows.channels, op.gate.hidden, op.gate.hidden, op.gate.hidden,
             op.gate.outputs * op.gate.hidden,  op.gate.outputs} {}
};
// The same for the first piece of the batch.
template <class acc_t>
Gradients of_first_piece(const GateBackward& op) {
  Gradients gradients(op);
  acc_t* next = static_cast<acc_t*>(op.piece_gradients);
  for (int s = 0; s < Gradients::kCount; ++s) {
    if (gradients.data[s] != nullptr) gradients.data[s] = next;
    next += gradients.size[s];
  }
  return gradients;
}

WeightPieces weight_pieces(const GateBackward& op) {
  const int64_t across = ceil_div(op.rows.channels, kTile) + ceil_div(op.gate.outputs, kTile);
  return {op.rows.samples, ceil_div(op.gate.hidden, kTile) * across};
}

// The blocks of the products: first those of the shares, then those of w1 and w2, piece by piece.
struct ProductBlocks {
  int64_t share, w1, w2;  // the last two of one piece
  WeightPieces pieces;

  explicit ProductBlocks(const GateBackward& op) : share(0), w1(0), w2(0), pieces(weight_pieces(op)) {
    const int64_t hidden_tiles = ceil_div(op.gate.hidden, kTile), channel_tiles = ceil_div(op.rows.channels, kTile);
    if (op.share != nullptr) share = ceil_div(op.rows.samples, kTile) * channel_tiles;
    if (op.dw1 || op.db1 || op.dnorm_weight || op.dnorm_bias) w1 = hidden_tiles * channel_tiles;
    if (op.dw2 || op.db2) w2 = ceil_div(op.gate.outputs, kTile) * hidden_tiles;
  }
  constexpr int64_t count() const { return share + pieces.count * (w1 + w2); }
};

template <class acc_t>
__device__ __forceinline__ void write_share(const GateBackward& op, Tiles<acc_t>& tiles, int64_t block) {
  const int64_t channels = op.rows.channels, samples = op.rows.samples;
  const int64_t across = ceil_div(channels, kTile);
  const int64_t tile = block / across;
  const int64_t n0 = tile * kTile;
  const int64_t c0 = (block - tile * across) * kTile;
  HiddenGradientBySample<acc_t> dz1{op, tiles, samples};
  ColumnMajor<acc_t> weights{{static_cast<const acc_t*>(op.gate.w1), channels, channels}};
  acc_t sums[kColumns];
  products(tiles, dz1, weights, n0, c0, 0, op.gate.hidden, sums);
  for_each_sum(n0, c0, samples, channels, sums, [&](int64_t n, int64_t c, acc_t dmean) {
    const int64_t i = n * channels + c;
    if (op.per_sample) {
      dmean += static_cast<const acc_t*>(op.dstatistic)[n] / acc_t(channels);
    } else {
      dmean += dtau_of<acc_t>(op, n, c) * alpha_of<acc_t>(op, n, c);
    }
    dmean += value_or<acc_t>(op.grad_mean, i, 0);
    static_cast<acc_t*>(op.share)[i] = dmean / acc_t(op.rows.length);
  });
}

template <class acc_t>
__device__ __forceinline__ void write_tile(void* out, int64_t offset, int64_t i0, int64_t j0, int64_t rows,
                                           int64_t columns, const acc_t (&sums)[kColumns]) {
  if (out == nullptr) return;
  for_each_sum(i0, j0, rows, columns, sums,
               [&](int64_t i, int64_t j, acc_t sum) { static_cast<acc_t*>(out)[offset + i * columns + j] = sum; });
}

// The sum of what the block's threads hold for place i0 + threadIdx.x % kTile.
template <class acc_t>
__device__ __forceinline__ void write_sum(Tiles<acc_t>& tiles, void* out, int64_t offset, int64_t i0, int64_t count,
                                          acc_t v) {
  v = place_sum(tiles, v);
  const int64_t i = i0 + threadIdx.x;
  if (out != nullptr && threadIdx.x < kTile && i < count) static_cast<acc_t*>(out)[offset + i] = v;
}

template <class acc_t>
__device__ __forceinline__ void make_product(const GateBackward& op, const ProductBlocks& blocks, const Gradients& out,
                                             Tiles<acc_t>& tiles, int64_t block) {
  if (block < blocks.share) {
    write_share(op, tiles, block);
    return;
  }
  const int64_t channels = op.rows.channels, hidden = op.gate.hidden, outputs = op.gate.outputs;
  block -= blocks.share;
  const int64_t piece = block / (blocks.w1 + blocks.w2);
  block -= piece * (blocks.w1 + blocks.w2);
  const int64_t begin = piece * blocks.pieces.samples;
  const int64_t end = min(begin + blocks.pieces.samples, op.rows.samples);
  const int64_t offset = piece * op.weights_size();
  acc_t sums[kColumns];
  if (block < blocks.w1) {
    const int64_t across = ceil_div(channels, kTile);
    const int64_t i0 = block / across * kTile, j0 = block % across * kTile;
    HiddenGradientByFeature<acc_t> dz1{op, tiles, hidden};
    ColumnMajor<acc_t> means{{static_cast<const acc_t*>(op.mean), channels, channels}};
    products(tiles, dz1, means, i0, j0, begin, end, sums);
    write_tile(out.data[0], offset, i0, j0, hidden, channels, sums);
    if (j0 > 0) return;
    write_sum(tiles, out.data[1], offset, i0, hidden, dz1.dz1);
    write_sum(tiles, out.data[2], offset, i0, hidden, dz1.dh_xhat);
    write_sum(tiles, out.data[3], offset, i0, hidden, dz1.dh);
  } else {
    block -= blocks.w1;
    const int64_t across = ceil_div(hidden, kTile);
    const int64_t i0 = block / across * kTile, j0 = block % across * kTile;
    AlphaGradientByOutput<acc_t> dz2{op, outputs};
    ActivationByFeature<acc_t> activations{op, hidden};
    products(tiles, dz2, activations, i0, j0, begin, end, sums);
    write_tile(out.data[4], offset, i0, j0, outputs, hidden, sums);
    if (j0 == 0) write_sum(tiles, out.data[5], offset, i0, outputs, dz2.dz2);
  }
}

template <class acc_t>
__global__ void __launch_bounds__(kThreads, kGateBlocks<acc_t>)
    gate_backward_layers(const __grid_constant__ GateBackward op, const __grid_constant__ NormPieces pieces,
                         const __grid_constant__ ProductBlocks blocks, const __grid_constant__ Gradients out,
                         const __grid_constant__ Layers layers) {
  wait_for_previous();
  __shared__ Tiles<acc_t> tiles;
  if (blockIdx.x < layers.first) hidden_gradient(op, pieces, tiles, blockIdx.x);
  if (layers.both()) wait_for_cluster();
  if (blockIdx.x < layers.second) make_product(op, blocks, out, tiles, blockIdx.x);
}

template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    add_pieces(const __grid_constant__ Gradients out, const acc_t* pieces, int64_t count, int64_t size) {
  wait_for_previous();
  const int64_t entry = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  int64_t i = entry;
#pragma unroll 1
  for (int s = 0; s < Gradients::kCount; ++s) {
    if (i < out.size[s]) {
      if (out.data[s] == nullptr) return;
      acc_t sum = 0;
#pragma unroll 1
      for (int64_t p = 0; p < count; ++p) sum += pieces[p * size + entry];
      static_cast<acc_t*>(out.data[s])[i] = sum;
      return;
    }
    i -= out.size[s];
  }
}

}  // namespace

GateBackward::GateBackward(const GatedShrinkBackward& op, Carve& carve)
    : GatedShrinkBackward(op), at(rows.samples, gate), by_sample(of_samples(gate.norm.kind)) {
  const int64_t samples = rows.samples, hidden = gate.hidden;
  active_sum = share = nullptr;
  dz2 = carve.take(samples * gate.outputs);
  dh = carve.take(samples * hidden);
  dstatistic = per_sample ? carve.take(samples) : nullptr;
  sample_norm = by_sample ? carve.take(2 * samples) : nullptr;
  pieces = by_sample ? ceil_div(hidden, kTile) : gate.norm.kind == NormKind::kBatch ? NormPieces(samples).count : 0;
  piece_sums = carve.take(pieces * 2 * (by_sample ? samples : hidden));
  const int64_t count = weight_pieces(*this).count;
  piece_gradients = count > 1 && needs_weights() ? carve.take(count * weights_size()) : nullptr;
}

namespace {

// The layer of the products, after that of the hidden gradient where `both`.
cudaError_t run_layers(const GateBackward& op, bool both, cudaStream_t stream) {
  const NormPieces norm_pieces(op.rows.samples);
  const ProductBlocks blocks(op);
  const Layers all{both ? norm_pieces.count * ceil_div(op.gate.hidden, kTile) : 0, blocks.count()};
  return dispatch_accumulator(op.dtype, [&](auto accumulator) {
    using acc_t = decltype(accumulator);
    const Gradients out(op);
    DRSN_CUDA_TRY(launch_layers(&gate_backward_layers<acc_t>, all, stream, op, norm_pieces, blocks,
                                blocks.pieces.count > 1 ? of_first_piece<acc_t>(op) : out));
    if (blocks.pieces.count == 1 || blocks.w1 + blocks.w2 == 0) return cudaSuccess;
    return launch_next(&add_pieces<acc_t>, ceil_div(op.weights_size(), kThreads), kThreads, stream, out,
                       static_cast<const acc_t*>(op.piece_gradients), blocks.pieces.count, op.weights_size());
  });
}

}  // namespace

cudaError_t gate_backward_products(const GateBackward& op, cudaStream_t stream) {
  return run_layers(op, false, stream);
}

cudaError_t gate_backward(const GateBackward& op, cudaStream_t stream) { return run_layers(op, true, stream); }

}  // namespace drsn::cuda
