// The gate over a whole batch. A block makes kTile x kTile sums; what couples samples or features, the statistics of a
// norm, is summed in parts by the kernel before and added up, in order, by the block that needs it.
//   gate_hidden             z1 = w1 m + b1; for kBatch mean and squares of each part of the batch
//   gate_alpha              alpha = sigmoid(w2 relu(norm(z1)) + b2), the running statistics, the samples' statistic
//   gate_backward_hidden    dz2; dh = [h > 0] w2^T dz2, and its sums for the norm
//   gate_backward_products  norm backward on the way into w1^T dz1, dz1^T m and dz2^T a: the share of each row and the
//                           gradients of the weights, which need nothing of one another
//   add_splits              adds up gradients of weights that were summed over splits of the batch
#include "cuda/gate.cuh"

namespace drsn::cuda {
namespace {

constexpr int kGroups = kThreads / kTile;  // threads that share a place of a tile's edge
constexpr int kColumns = 4;                // neighbouring sums of a thread
static_assert(kTile == kWarp && kGroups * kColumns == kTile);

template <class acc_t>
struct Shared {
  // A row of a tile is a k; the padding keeps 4 neighbours aligned and spreads the banks.
  alignas(32) acc_t left[kTile][kTile + 4];
  alignas(32) acc_t right[kTile][kTile + 4];
  acc_t groups[kGroups][kTile];
  NormNumbers<acc_t> norm[kTile];  // of a tile's features or samples
  acc_t sample[2][kTile];
};

// The sum over the block's groups, for each of the kTile places threadIdx.x % kTile, in every thread.
template <class acc_t>
__device__ __forceinline__ acc_t sum_groups(Shared<acc_t>& shared, acc_t v) {
  __syncthreads();
  shared.groups[threadIdx.x / kTile][threadIdx.x % kTile] = v;
  __syncthreads();
  acc_t sum = 0;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) sum += shared.groups[g][threadIdx.x % kTile];
  return sum;
}

// An operand of a product has kAlongK, whether neighbours in memory differ in k; count, of its outer index; prepare(i0,
// k0, first) before each tile, called by the whole block; and at(i, k).
template <class acc_t>
struct Matrix {
  const acc_t* data;
  int64_t count, stride;
};
template <class acc_t>
struct RowMajor : Matrix<acc_t> {  // at(i, k) = data[i][k]
  static constexpr bool kAlongK = true;
  __device__ __forceinline__ void prepare(int64_t, int64_t, bool) const {}
  __device__ __forceinline__ acc_t at(int64_t i, int64_t k) const { return this->data[i * this->stride + k]; }
};
template <class acc_t>
struct ColumnMajor : Matrix<acc_t> {  // at(i, k) = data[k][i]
  static constexpr bool kAlongK = false;
  __device__ __forceinline__ void prepare(int64_t, int64_t, bool) const {}
  __device__ __forceinline__ acc_t at(int64_t i, int64_t k) const { return this->data[k * this->stride + i]; }
};

template <class acc_t, class Operand>
__device__ __forceinline__ void load_tile(Operand& operand, acc_t (&tile)[kTile][kTile + 4], int64_t i0, int64_t k0,
                                          int64_t end) {
  const int fast = threadIdx.x % kTile;
#pragma unroll
  for (int u = 0; u < kTile / kGroups; ++u) {
    const int slow = threadIdx.x / kTile + u * kGroups;
    const int i = Operand::kAlongK ? slow : fast;
    const int k = Operand::kAlongK ? fast : slow;
    tile[k][i] = i0 + i < operand.count && k0 + k < end ? operand.at(i0 + i, k0 + k) : acc_t(0);
  }
}

// sums[q] = sum over k from begin to end, in order, of left(i, k) * right(j, k) at i = i0 + thread / 8 and j = j0 +
// 4 * (thread % 8) + q.
template <class acc_t, class Left, class Right>
__device__ __forceinline__ void products(Shared<acc_t>& shared, Left& left, Right& right, int64_t i0, int64_t j0,
                                         int64_t begin, int64_t end, acc_t (&sums)[kColumns]) {
  const int row = threadIdx.x / kGroups;
  const int column = threadIdx.x % kGroups * kColumns;
#pragma unroll
  for (int q = 0; q < kColumns; ++q) sums[q] = 0;
#pragma unroll 1
  for (int64_t k0 = begin; k0 < end; k0 += kTile) {
    __syncthreads();  // the tiles before may still be read
    left.prepare(i0, k0, k0 == begin);
    right.prepare(j0, k0, k0 == begin);
    load_tile(left, shared.left, i0, k0, end);
    load_tile(right, shared.right, j0, k0, end);
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < kTile; ++k) {
      const acc_t a = shared.left[k][row];
      const auto b = *reinterpret_cast<const Vector<acc_t, kColumns>*>(&shared.right[k][column]);
#pragma unroll
      for (int q = 0; q < kColumns; ++q) sums[q] += a * b.value[q];
    }
  }
}

template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    gate_hidden(const __grid_constant__ GateForward op, const __grid_constant__ GateParts parts) {
  __shared__ Shared<acc_t> shared;
  const int64_t hidden = op.gate.hidden;
  const int64_t tiles = ceil_div(hidden, kTile);
  const int64_t part = blockIdx.x / tiles;
  const int64_t h0 = (blockIdx.x - part * tiles) * kTile;
  const int64_t begin = part * parts.tiles * kTile;
  const int64_t end = min(begin + parts.tiles * kTile, op.samples);
  RowMajor<acc_t> means{{static_cast<const acc_t*>(op.mean), end, op.channels}};
  RowMajor<acc_t> weights{{static_cast<const acc_t*>(op.gate.w1), hidden, op.channels}};
  acc_t* z1 = static_cast<acc_t*>(op.state) + op.layout.hidden;
#pragma unroll 1
  for (int64_t n0 = begin; n0 < end; n0 += kTile) {
    acc_t sums[kColumns];
    products(shared, means, weights, n0, h0, 0, op.channels, sums);
    const int64_t n = n0 + threadIdx.x / kGroups;
#pragma unroll
    for (int q = 0; q < kColumns; ++q) {
      const int64_t h = h0 + threadIdx.x % kGroups * kColumns + q;
      if (n < end && h < hidden) z1[n * hidden + h] = sums[q] + value_or<acc_t>(op.gate.b1, h, 0);
    }
  }
  if (op.gate.norm.kind != NormKind::kBatch) return;

  __syncthreads();  // z1 of this part is there
  const int64_t h = h0 + threadIdx.x % kTile;
  acc_t sum = 0, squares = 0;
  for (int64_t n = begin + threadIdx.x / kTile; n < end && h < hidden; n += kGroups) sum += z1[n * hidden + h];
  const acc_t mean = sum_groups(shared, sum) / acc_t(end - begin);
  for (int64_t n = begin + threadIdx.x / kTile; n < end && h < hidden; n += kGroups) {
    const acc_t distance = z1[n * hidden + h] - mean;
    squares += distance * distance;
  }
  squares = sum_groups(shared, squares);
  if (threadIdx.x < kTile && h < hidden) {
    acc_t* sums = static_cast<acc_t*>(op.part_sums) + part * 2 * hidden + h;
    sums[0] = mean;
    sums[hidden] = squares;
  }
}

// mean and rstd of a sample's hidden features, by one warp.
template <class acc_t>
__device__ __forceinline__ NormNumbers<acc_t> sample_norm(const Norm& norm, const acc_t* z1, int64_t hidden) {
  const int lane = threadIdx.x % kWarp;
  acc_t mean = 0, squares = 0;
  if (norm.kind == NormKind::kLayer) mean = sample_mean(z1, hidden);
  for (int64_t h = lane; h < hidden; h += kWarp) {
    const acc_t distance = z1[h] - mean;
    squares += distance * distance;
  }
  return {mean, rstd_of(warp_sum(squares) / acc_t(hidden), norm.eps), 0, 0};
}

// relu(norm(z1)) of the samples of a block; a tile along k is of kTile features.
template <class acc_t>
struct Activation {
  static constexpr bool kAlongK = true;
  const GateForward& op;
  const GateParts& parts;
  const acc_t* part_sums;
  Shared<acc_t>& shared;
  bool writes;  // this block leaves the statistics in state
  int64_t count;

  __device__ __forceinline__ void prepare(int64_t n0, int64_t h0, bool) const {
    const Norm& norm = op.gate.norm;
    const int64_t hidden = op.gate.hidden;
    const int64_t h = h0 + threadIdx.x % kTile;
    if (op.by_sample) return;
    NormNumbers<acc_t> numbers{0, 1, 0, 0};
    if (norm.kind == NormKind::kRunning && h < hidden) {
      numbers.mean = value_or<acc_t>(norm.running_mean, h, 0);
      numbers.rstd = rstd_of(value_or<acc_t>(norm.running_var, h, 1), norm.eps);
    }
    if (norm.kind == NormKind::kBatch) {
      const int64_t span = parts.tiles * kTile;
      acc_t sum = 0, squares = 0;
      for (int64_t p = threadIdx.x / kTile; p < parts.parts && h < hidden; p += kGroups) {
        sum += acc_t(min(span, op.samples - p * span)) * part_sums[p * 2 * hidden + h];
      }
      numbers.mean = sum_groups(shared, sum) / acc_t(op.samples);
      for (int64_t p = threadIdx.x / kTile; p < parts.parts && h < hidden; p += kGroups) {
        const acc_t distance = part_sums[p * 2 * hidden + h] - numbers.mean;
        squares +=
            part_sums[(p * 2 + 1) * hidden + h] + acc_t(min(span, op.samples - p * span)) * (distance * distance);
      }
      squares = sum_groups(shared, squares);
      numbers.rstd = rstd_of(squares / acc_t(op.samples), norm.eps);
      if (writes && threadIdx.x < kTile && h < hidden) {
        const int64_t batches = norm.batches == nullptr ? 1 : *norm.batches + 1;
        update_running(norm, h, numbers.mean, squares, acc_t(op.samples), batches);
      }
    }
    if (threadIdx.x < kTile) shared.norm[threadIdx.x] = numbers;
    if (writes && norm.kind != NormKind::kNone && threadIdx.x < kTile && h < hidden) {
      static_cast<acc_t*>(op.state)[op.layout.norm_mean + h] = numbers.mean;
      static_cast<acc_t*>(op.state)[op.layout.norm_rstd + h] = numbers.rstd;
    }
    __syncthreads();
  }
  __device__ __forceinline__ acc_t at(int64_t n, int64_t h) const {
    const acc_t z = static_cast<const acc_t*>(op.state)[op.layout.hidden + n * op.gate.hidden + h];
    return activation(op.gate.norm, h, shared.norm[(op.by_sample ? n : h) % kTile].xhat(z));
  }
};

template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    gate_alpha(const __grid_constant__ GateForward op, const __grid_constant__ GateParts parts) {
  __shared__ Shared<acc_t> shared;
  const int64_t outputs = op.gate.outputs, hidden = op.gate.hidden;
  const int64_t tiles = ceil_div(outputs, kTile);
  const int64_t tile = blockIdx.x / tiles;
  const int64_t k0 = (blockIdx.x - tile * tiles) * kTile;
  const int64_t n0 = tile * kTile;
  const bool first = threadIdx.x % kWarp == 0;
#pragma unroll 1
  for (int i = threadIdx.x / kWarp; i < min(int64_t(kTile), op.samples - n0); i += kGroups) {
    if (op.by_sample) {
      const acc_t* z1 = static_cast<const acc_t*>(op.state) + op.layout.hidden + (n0 + i) * hidden;
      const NormNumbers<acc_t> numbers = sample_norm(op.gate.norm, z1, hidden);
      if (first) shared.norm[i] = numbers;
    }
    if (op.statistic != nullptr && k0 == 0) {
      const acc_t statistic = sample_mean(static_cast<const acc_t*>(op.mean) + (n0 + i) * op.channels, op.channels);
      if (first) static_cast<acc_t*>(op.statistic)[n0 + i] = statistic;
    }
  }
  Activation<acc_t> activations{op,     parts,           static_cast<const acc_t*>(op.part_sums),
                                shared, blockIdx.x == 0, op.samples};
  RowMajor<acc_t> weights{{static_cast<const acc_t*>(op.gate.w2), outputs, hidden}};
  acc_t sums[kColumns];
  products(shared, activations, weights, n0, k0, 0, hidden, sums);
  acc_t* alpha = static_cast<acc_t*>(op.state) + op.layout.alpha;
  const int64_t n = n0 + threadIdx.x / kGroups;
#pragma unroll
  for (int q = 0; q < kColumns; ++q) {
    const int64_t k = k0 + threadIdx.x % kGroups * kColumns + q;
    if (n < op.samples && k < outputs) alpha[n * outputs + k] = sigmoid(sums[q] + value_or<acc_t>(op.gate.b2, k, 0));
  }
  // Only this block has read the counter, and all of it is past that.
  if (blockIdx.x == 0 && threadIdx.x == 0 && op.gate.norm.kind == NormKind::kBatch && op.gate.norm.batches != nullptr) {
    ++*op.gate.norm.batches;
  }
}

// d_tau of a row.
template <class acc_t>
__device__ __forceinline__ acc_t dtau_of(const GateBackward& op, int64_t n, int64_t c, acc_t alpha, acc_t statistic) {
  const acc_t sum = static_cast<const acc_t*>(op.active_sum)[n * op.channels + c];
  return alpha * statistic < acc_t(0) ? acc_t(0) : -sum;
}
template <class acc_t>
__device__ __forceinline__ acc_t alpha_of(const GateBackward& op, int64_t n, int64_t c) {
  const acc_t* alpha = static_cast<const acc_t*>(op.state) + op.layout.alpha;
  return alpha[n * op.gate.outputs + (op.gate.outputs == 1 ? 0 : c)];
}

// dz2 of the samples of a block. The block of the first features leaves it in memory.
template <class acc_t>
struct AlphaGradient {
  static constexpr bool kAlongK = true;
  const GateBackward& op;
  const Shared<acc_t>& shared;  // sample[0]: the statistic, sample[1]: d_alpha where there is one output
  bool writes;
  int64_t count;

  __device__ __forceinline__ void prepare(int64_t, int64_t, bool) const {}
  __device__ __forceinline__ acc_t at(int64_t n, int64_t k) const {
    const acc_t alpha = alpha_of<acc_t>(op, n, k);
    acc_t dalpha = shared.sample[1][n % kTile];
    if (op.gate.outputs != 1) {
      const acc_t own = static_cast<const acc_t*>(op.mean)[n * op.channels + k];
      const acc_t statistic = op.per_sample ? shared.sample[0][n % kTile] : own;
      dalpha = dtau_of(op, n, k, alpha, statistic) * statistic;
    }
    const acc_t dz2 = dalpha * alpha * (acc_t(1) - alpha);
    if (writes) static_cast<acc_t*>(op.dz2)[n * op.gate.outputs + k] = dz2;
    return dz2;
  }
};

// What the sums over a sample's channels are: the statistic, d_alpha of the one output, d_statistic. By one warp.
template <class acc_t>
__device__ __forceinline__ void sample_sums(const GateBackward& op, int64_t n, acc_t (&sums)[3]) {
  const acc_t* mean = static_cast<const acc_t*>(op.mean) + n * op.channels;
  sums[0] = op.per_sample ? sample_mean(mean, op.channels) : acc_t(0);
  acc_t dalpha = 0, dstatistic = 0;
  for (int64_t c = threadIdx.x % kWarp; c < op.channels; c += kWarp) {
    const acc_t alpha = alpha_of<acc_t>(op, n, c);
    const acc_t statistic = op.per_sample ? sums[0] : mean[c];
    const acc_t dtau = dtau_of(op, n, c, alpha, statistic);
    dalpha += dtau * statistic;
    dstatistic += dtau * alpha;
  }
  sums[1] = warp_sum(dalpha);
  sums[2] = warp_sum(dstatistic);
}

// mean and rstd of feature h, or of sample n where by_sample, as the passes before left them.
template <class acc_t>
__device__ __forceinline__ NormNumbers<acc_t> norm_numbers(const GateBackward& op, int64_t n, int64_t h) {
  if (op.gate.norm.kind == NormKind::kNone) return {0, 1, 0, 0};
  const acc_t* state = static_cast<const acc_t*>(op.state);
  if (!op.by_sample) return {state[op.layout.norm_mean + h], state[op.layout.norm_rstd + h], 0, 0};
  const acc_t* norm = static_cast<const acc_t*>(op.sample_norm);
  return {norm[n], norm[op.samples + n], 0, 0};
}

template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    gate_backward_hidden(const __grid_constant__ GateBackward op, const __grid_constant__ GateParts parts) {
  __shared__ Shared<acc_t> shared;
  const Norm& norm = op.gate.norm;
  const int64_t outputs = op.gate.outputs, hidden = op.gate.hidden;
  const int64_t tiles = ceil_div(hidden, kTile);
  const int64_t part = blockIdx.x / tiles;
  const int64_t tile = blockIdx.x - part * tiles;
  const int64_t h0 = tile * kTile;
  const int64_t begin = part * parts.tiles * kTile;
  const int64_t end = min(begin + parts.tiles * kTile, op.samples);
  const bool writes = tile == 0;  // what is of a sample alone
  const acc_t* z1 = static_cast<const acc_t*>(op.state) + op.layout.hidden;
  acc_t* part_sums = static_cast<acc_t*>(op.part_sums);
  AlphaGradient<acc_t> dz2{op, shared, writes, end};
  ColumnMajor<acc_t> weights{{static_cast<const acc_t*>(op.gate.w2), hidden, hidden}};
  acc_t batch_dh = 0, batch_dh_xhat = 0;
#pragma unroll 1
  for (int64_t n0 = begin; n0 < end; n0 += kTile) {
    __syncthreads();  // the tile before may still be read
#pragma unroll 1
    for (int i = threadIdx.x / kWarp; i < min(int64_t(kTile), end - n0); i += kGroups) {
      const bool first = threadIdx.x % kWarp == 0;
      if (op.per_sample || outputs == 1) {
        acc_t sums[3];
        sample_sums(op, n0 + i, sums);
        if (first) {
          shared.sample[0][i] = sums[0];
          shared.sample[1][i] = sums[1];
          if (writes && op.per_sample) static_cast<acc_t*>(op.dstatistic)[n0 + i] = sums[2];
        }
      }
      if (op.by_sample) {
        const NormNumbers<acc_t> numbers = sample_norm(norm, z1 + (n0 + i) * hidden, hidden);
        if (first) shared.norm[i] = numbers;
        if (first && writes) {
          static_cast<acc_t*>(op.sample_norm)[n0 + i] = numbers.mean;
          static_cast<acc_t*>(op.sample_norm)[op.samples + n0 + i] = numbers.rstd;
        }
      }
    }
    acc_t sums[kColumns];
    products(shared, dz2, weights, n0, h0, 0, outputs, sums);
    const int row = threadIdx.x / kGroups;
    const int64_t n = n0 + row;
    acc_t sample_dh = 0, sample_dh_xhat = 0;
    __syncthreads();  // the tiles take dh and dh * xhat
#pragma unroll
    for (int q = 0; q < kColumns; ++q) {
      const int column = threadIdx.x % kGroups * kColumns + q;
      const int64_t h = h0 + column;
      acc_t dh = 0, xhat = 0;
      if (n < end && h < hidden) {
        xhat = (op.by_sample ? shared.norm[row] : norm_numbers<acc_t>(op, n, h)).xhat(z1[n * hidden + h]);
        dh = activation(norm, h, xhat) <= acc_t(0) ? acc_t(0) : sums[q];
        static_cast<acc_t*>(op.dh)[n * hidden + h] = dh;
        dh *= value_or<acc_t>(norm.weight, h, 1);
      }
      sample_dh += dh;
      sample_dh_xhat += dh * xhat;
      shared.left[row][column] = dh;
      shared.right[row][column] = dh * xhat;
    }
    if (op.by_sample) {
#pragma unroll
      for (int d = kGroups / 2; d > 0; d /= 2) {
        sample_dh += __shfl_xor_sync(~0u, sample_dh, d);
        sample_dh_xhat += __shfl_xor_sync(~0u, sample_dh_xhat, d);
      }
      if (threadIdx.x % kGroups == 0 && n < end) {
        part_sums[tile * 2 * op.samples + n] = sample_dh;
        part_sums[(tile * 2 + 1) * op.samples + n] = sample_dh_xhat;
      }
    }
    __syncthreads();
    if (norm.kind == NormKind::kBatch) {
#pragma unroll
      for (int u = 0; u < kTile / kGroups; ++u) {
        batch_dh += shared.left[threadIdx.x / kTile + u * kGroups][threadIdx.x % kTile];
        batch_dh_xhat += shared.right[threadIdx.x / kTile + u * kGroups][threadIdx.x % kTile];
      }
    }
  }
  if (norm.kind != NormKind::kBatch) return;
  batch_dh = sum_groups(shared, batch_dh);
  batch_dh_xhat = sum_groups(shared, batch_dh_xhat);
  const int64_t h = h0 + threadIdx.x % kTile;
  if (threadIdx.x < kTile && h < hidden) {
    part_sums[part * 2 * hidden + h] = batch_dh;
    part_sums[(part * 2 + 1) * hidden + h] = batch_dh_xhat;
  }
}

// Everything a norm's gradient needs of kTile features from h0 on, or of kTile samples from n0 on where by_sample.
template <class acc_t>
__device__ __forceinline__ void prepare_norm(const GateBackward& op, Shared<acc_t>& shared, int64_t n0, int64_t h0) {
  const int64_t lane = threadIdx.x % kTile;
  const int64_t own = (op.by_sample ? n0 : h0) + lane;
  const int64_t count = op.by_sample ? op.samples : op.gate.hidden;
  NormNumbers<acc_t> numbers{0, 1, 0, 0};
  if (own < count) numbers = norm_numbers<acc_t>(op, own, own);
  if (op.parts > 0) {
    const acc_t* part_sums = static_cast<const acc_t*>(op.part_sums);
    acc_t dh = 0, dh_xhat = 0;
    for (int64_t p = threadIdx.x / kTile; p < op.parts && own < count; p += kGroups) {
      dh += part_sums[p * 2 * count + own];
      dh_xhat += part_sums[(p * 2 + 1) * count + own];
    }
    const acc_t divisor = acc_t(op.by_sample ? op.gate.hidden : op.samples);
    dh = sum_groups(shared, dh) / divisor;
    if (op.gate.norm.kind != NormKind::kRms) numbers.dh = dh;
    numbers.dh_xhat = sum_groups(shared, dh_xhat) / divisor;
  }
  if (threadIdx.x < kTile) shared.norm[threadIdx.x] = numbers;
  __syncthreads();
}

// dz1 with rows of samples, for w1^T dz1.
template <class acc_t>
struct HiddenGradientBySample {
  static constexpr bool kAlongK = true;
  const GateBackward& op;
  Shared<acc_t>& shared;
  int64_t count;

  __device__ __forceinline__ void prepare(int64_t n0, int64_t h0, bool first) const {
    if (first || !op.by_sample) prepare_norm(op, shared, n0, h0);
  }
  __device__ __forceinline__ acc_t at(int64_t n, int64_t h) const {
    const int64_t i = n * op.gate.hidden + h;
    const acc_t z = static_cast<const acc_t*>(op.state)[op.layout.hidden + i];
    const acc_t dh = static_cast<const acc_t*>(op.dh)[i] * value_or<acc_t>(op.gate.norm.weight, h, 1);
    return shared.norm[(op.by_sample ? n : h) % kTile].gradient(dh, z);
  }
};

// dz1 with rows of features, for dz1^T m. It sums what passes: a thread loads one feature alone.
template <class acc_t>
struct HiddenGradientByFeature {
  static constexpr bool kAlongK = false;
  const GateBackward& op;
  Shared<acc_t>& shared;
  int64_t count;
  acc_t dz1 = 0, dh = 0, dh_xhat = 0;

  __device__ __forceinline__ void prepare(int64_t h0, int64_t n0, bool first) const {
    if (first || op.by_sample) prepare_norm(op, shared, n0, h0);
  }
  __device__ __forceinline__ acc_t at(int64_t h, int64_t n) {
    const int64_t i = n * op.gate.hidden + h;
    const acc_t z = static_cast<const acc_t*>(op.state)[op.layout.hidden + i];
    const acc_t own = static_cast<const acc_t*>(op.dh)[i];
    const NormNumbers<acc_t>& numbers = shared.norm[(op.by_sample ? n : h) % kTile];
    const acc_t gradient = numbers.gradient(own * value_or<acc_t>(op.gate.norm.weight, h, 1), z);
    dz1 += gradient;
    dh += own;
    dh_xhat += own * numbers.xhat(z);
    return gradient;
  }
};

// dz2 with rows of outputs, and its sum.
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
    const acc_t z = static_cast<const acc_t*>(op.state)[op.layout.hidden + n * op.gate.hidden + h];
    return activation(op.gate.norm, h, norm_numbers<acc_t>(op, n, h).xhat(z));
  }
};

// The gradients of the weights, one behind the other.
struct Sections {
  static constexpr int kCount = 6;
  void* data[kCount];
  int64_t size[kCount];

  explicit Sections(const GateBackward& op)
      : data{op.dw1, op.db1, op.dnorm_weight, op.dnorm_bias, op.dw2, op.db2},
        size{op.gate.hidden * op.channels,     op.gate.hidden, op.gate.hidden, op.gate.hidden,
             op.gate.outputs * op.gate.hidden, op.gate.outputs} {}
};
// The same in the first split's stretch of memory.
template <class acc_t>
Sections in_splits(const GateBackward& op) {
  Sections sections(op);
  acc_t* next = static_cast<acc_t*>(op.splits);
  for (int s = 0; s < Sections::kCount; ++s) {
    if (sections.data[s] != nullptr) sections.data[s] = next;
    next += sections.size[s];
  }
  return sections;
}

// Where the blocks of gate_backward_products begin: first the shares, then w1 and w2, a split behind another.
struct ProductBlocks {
  int64_t share, w1, w2;  // blocks of each, of one split
  GateSplits splits;
};

template <class acc_t>
__device__ __forceinline__ void write_share(const GateBackward& op, Shared<acc_t>& shared, int64_t block) {
  const int64_t tiles = ceil_div(op.channels, kTile);
  const int64_t tile = block / tiles;
  const int64_t n0 = tile * kTile;
  const int64_t c0 = (block - tile * tiles) * kTile;
  HiddenGradientBySample<acc_t> dz1{op, shared, op.samples};
  ColumnMajor<acc_t> weights{{static_cast<const acc_t*>(op.gate.w1), op.channels, op.channels}};
  acc_t sums[kColumns];
  products(shared, dz1, weights, n0, c0, 0, op.gate.hidden, sums);
  const int64_t n = n0 + threadIdx.x / kGroups;
#pragma unroll
  for (int q = 0; q < kColumns; ++q) {
    const int64_t c = c0 + threadIdx.x % kGroups * kColumns + q;
    if (n >= op.samples || c >= op.channels) continue;
    const int64_t i = n * op.channels + c;
    acc_t dmean = sums[q];
    if (op.per_sample) {
      dmean += static_cast<const acc_t*>(op.dstatistic)[n] / acc_t(op.channels);
    } else {
      const acc_t alpha = alpha_of<acc_t>(op, n, c);
      dmean += dtau_of(op, n, c, alpha, static_cast<const acc_t*>(op.mean)[i]) * alpha;
    }
    dmean += value_or<acc_t>(op.grad_mean, i, 0);
    static_cast<acc_t*>(op.share)[i] = dmean / acc_t(op.length);
  }
}

template <class acc_t>
__device__ __forceinline__ void write_tile(void* out, int64_t offset, int64_t i0, int64_t j0, int64_t rows,
                                           int64_t columns, const acc_t (&sums)[kColumns]) {
  const int64_t i = i0 + threadIdx.x / kGroups;
  if (out == nullptr || i >= rows) return;
#pragma unroll
  for (int q = 0; q < kColumns; ++q) {
    const int64_t j = j0 + threadIdx.x % kGroups * kColumns + q;
    if (j < columns) static_cast<acc_t*>(out)[offset + i * columns + j] = sums[q];
  }
}

// The sum of what the block's threads hold for place i0 + threadIdx.x % kTile.
template <class acc_t>
__device__ __forceinline__ void write_sum(Shared<acc_t>& shared, void* out, int64_t offset, int64_t i0, int64_t count,
                                          acc_t v) {
  v = sum_groups(shared, v);
  const int64_t i = i0 + threadIdx.x;
  if (out != nullptr && threadIdx.x < kTile && i < count) static_cast<acc_t*>(out)[offset + i] = v;
}

template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    gate_backward_products_kernel(const __grid_constant__ GateBackward op, const __grid_constant__ ProductBlocks blocks,
                                  const __grid_constant__ Sections out) {
  __shared__ Shared<acc_t> shared;
  if (blockIdx.x < blocks.share) {
    write_share(op, shared, blockIdx.x);
    return;
  }
  const int64_t channels = op.channels, hidden = op.gate.hidden, outputs = op.gate.outputs;
  int64_t block = blockIdx.x - blocks.share;
  const int64_t split = block / (blocks.w1 + blocks.w2);
  block -= split * (blocks.w1 + blocks.w2);
  const int64_t begin = split * blocks.splits.samples;
  const int64_t end = min(begin + blocks.splits.samples, op.samples);
  const int64_t offset = split * op.weights_size();
  acc_t sums[kColumns];
  if (block < blocks.w1) {
    const int64_t tiles = ceil_div(channels, kTile);
    const int64_t i0 = block / tiles * kTile, j0 = block % tiles * kTile;
    HiddenGradientByFeature<acc_t> dz1{op, shared, hidden};
    ColumnMajor<acc_t> means{{static_cast<const acc_t*>(op.mean), channels, channels}};
    products(shared, dz1, means, i0, j0, begin, end, sums);
    write_tile(out.data[0], offset, i0, j0, hidden, channels, sums);
    if (j0 > 0) return;
    write_sum(shared, out.data[1], offset, i0, hidden, dz1.dz1);
    write_sum(shared, out.data[2], offset, i0, hidden, dz1.dh_xhat);
    write_sum(shared, out.data[3], offset, i0, hidden, dz1.dh);
  } else {
    block -= blocks.w1;
    const int64_t tiles = ceil_div(hidden, kTile);
    const int64_t i0 = block / tiles * kTile, j0 = block % tiles * kTile;
    AlphaGradientByOutput<acc_t> dz2{op, outputs};
    ActivationByFeature<acc_t> activations{op, hidden};
    products(shared, dz2, activations, i0, j0, begin, end, sums);
    write_tile(out.data[4], offset, i0, j0, outputs, hidden, sums);
    if (j0 == 0) write_sum(shared, out.data[5], offset, i0, outputs, dz2.dz2);
  }
}

template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    add_splits(const __grid_constant__ Sections out, const acc_t* splits, int64_t count, int64_t size) {
  const int64_t entry = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  int64_t i = entry;
#pragma unroll 1
  for (int s = 0; s < Sections::kCount; ++s) {
    if (i < out.size[s]) {
      if (out.data[s] == nullptr) return;
      acc_t sum = 0;
#pragma unroll 1
      for (int64_t p = 0; p < count; ++p) sum += splits[p * size + entry];
      static_cast<acc_t*>(out.data[s])[i] = sum;
      return;
    }
    i -= out.size[s];
  }
}

template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    sample_statistics_kernel(const acc_t* mean, int64_t samples, int64_t channels, acc_t* statistic) {
  const int64_t n = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (n >= samples) return;
  const acc_t value = sample_mean(mean + n * channels, channels);
  if (threadIdx.x % kWarp == 0) statistic[n] = value;
}

GateSplits splits_of(const GateBackward& op) {
  return {op.samples,
          ceil_div(op.gate.hidden, kTile) * (ceil_div(op.channels, kTile) + ceil_div(op.gate.outputs, kTile))};
}

// f(acc_t{}) with the accumulator's type.
template <class F>
cudaError_t dispatch_accumulator(DType dtype, F f) {
  return accumulates_in_double(dtype) ? f(double{}) : f(float{});
}

}  // namespace

cudaError_t gate_forward(DType dtype, const GateForward& op, cudaStream_t stream) {
  const GateParts parts(op.samples);
  return dispatch_accumulator(dtype, [&](auto accumulator) {
    using acc_t = decltype(accumulator);
    DRSN_CUDA_TRY(
        launch(&gate_hidden<acc_t>, parts.parts * ceil_div(op.gate.hidden, kTile), kThreads, stream, op, parts));
    return launch(&gate_alpha<acc_t>, ceil_div(op.samples, kTile) * ceil_div(op.gate.outputs, kTile), kThreads, stream,
                  op, parts);
  });
}

cudaError_t gate_backward_products(DType dtype, const GateBackward& op, cudaStream_t stream) {
  const int64_t hidden_tiles = ceil_div(op.gate.hidden, kTile), channel_tiles = ceil_div(op.channels, kTile);
  ProductBlocks blocks{0, 0, 0, splits_of(op)};
  if (op.share != nullptr) blocks.share = ceil_div(op.samples, kTile) * channel_tiles;
  if (op.dw1 || op.db1 || op.dnorm_weight || op.dnorm_bias) blocks.w1 = hidden_tiles * channel_tiles;
  if (op.dw2 || op.db2) blocks.w2 = ceil_div(op.gate.outputs, kTile) * hidden_tiles;
  const int64_t splits = blocks.splits.splits;
  return dispatch_accumulator(dtype, [&](auto accumulator) {
    using acc_t = decltype(accumulator);
    const Sections out(op);
    DRSN_CUDA_TRY(launch(&gate_backward_products_kernel<acc_t>, blocks.share + splits * (blocks.w1 + blocks.w2),
                         kThreads, stream, op, blocks, splits > 1 ? in_splits<acc_t>(op) : out));
    if (splits == 1 || blocks.w1 + blocks.w2 == 0) return cudaSuccess;
    return launch(&add_splits<acc_t>, ceil_div(op.weights_size(), kThreads), kThreads, stream, out,
                  static_cast<const acc_t*>(op.splits), splits, op.weights_size());
  });
}

cudaError_t gate_backward(DType dtype, const GateBackward& op, cudaStream_t stream) {
  const GateParts parts(op.samples);
  DRSN_CUDA_TRY(dispatch_accumulator(dtype, [&](auto accumulator) {
    return launch(&gate_backward_hidden<decltype(accumulator)>, parts.parts * ceil_div(op.gate.hidden, kTile), kThreads,
                  stream, op, parts);
  }));
  return gate_backward_products(dtype, op, stream);
}

cudaError_t sample_statistics(DType dtype, const void* mean, int64_t samples, int64_t channels, void* statistic,
                              cudaStream_t stream) {
  return dispatch_accumulator(dtype, [&](auto accumulator) {
    using acc_t = decltype(accumulator);
    return launch(&sample_statistics_kernel<acc_t>, ceil_div(samples, kThreads / kWarp), kThreads, stream,
                  static_cast<const acc_t*>(mean), samples, channels, static_cast<acc_t*>(statistic));
  });
}

GateForward gate_forward_of(const GatedShrink& op, Carve& carve) {
  GateForward gate{op.gate, op.rows.samples, op.rows.channels, of_samples(op.gate.norm.kind), op.mean};
  gate.layout = StateOffsets(op.rows.samples, op.gate);
  gate.state = op.state;
  if (op.per_sample) gate.statistic = carve.take(op.rows.samples);
  if (op.gate.norm.kind == NormKind::kBatch) {
    gate.part_sums = carve.take(GateParts(op.rows.samples).parts * 2 * op.gate.hidden);
  }
  return gate;
}

GateBackward gate_backward_of(const GatedShrinkBackward& op, Carve& carve) {
  GateBackward gate{};
  const int64_t samples = op.rows.samples, hidden = op.gate.hidden, outputs = op.gate.outputs;
  const bool by_sample = of_samples(op.gate.norm.kind);
  gate.gate = op.gate;
  gate.samples = samples, gate.channels = op.rows.channels, gate.length = op.rows.length;
  gate.by_sample = by_sample, gate.per_sample = op.per_sample;
  gate.mean = op.mean;
  gate.layout = StateOffsets(samples, op.gate);
  gate.state = op.state;
  gate.grad_mean = op.grad_mean;
  gate.dw1 = op.dw1, gate.db1 = op.db1, gate.dw2 = op.dw2, gate.db2 = op.db2;
  gate.dnorm_weight = op.dnorm_weight, gate.dnorm_bias = op.dnorm_bias;
  gate.dz2 = carve.take(samples * outputs);
  gate.dh = carve.take(samples * hidden);
  if (op.per_sample) gate.dstatistic = carve.take(samples);
  if (by_sample) gate.sample_norm = carve.take(2 * samples);
  if (by_sample) gate.parts = ceil_div(hidden, kTile);
  if (op.gate.norm.kind == NormKind::kBatch) gate.parts = GateParts(samples).parts;
  gate.part_sums = carve.take(gate.parts * 2 * (by_sample ? samples : hidden));
  const int64_t splits = splits_of(gate).splits;
  if (splits > 1 && gate.needs_weights()) gate.splits = carve.take(splits * gate.weights_size());
  return gate;
}

}  // namespace drsn::cuda
