// gated_shrink of x = norm(z), where x is never in memory. z is read three times forwards, for the statistics of its
// channels, the means of |x| and the result, and twice backwards: for five sums of each row, then for dz.
#include "cuda/backend.h"
#include "cuda/gate.cuh"
#include "cuda/reduce.cuh"
#include "cuda/shrink.cuh"

namespace drsn::cuda {
namespace {

// The input's normalisation, by channel. One arithmetic for every kernel: all see the same x. The mean goes first: a
// large one does not cost the digits of x.
template <class acc_t>
struct InputNorm {
  const acc_t *mean, *rstd, *weight, *bias;  // the last two may be null

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

// A row of z as pieces that a kernel holds on chip.
struct Pieces {
  int64_t length, row_length, count;  // of a piece, of a row; pieces of a row
  Divisor of_row;
  explicit Pieces(int64_t row)
      : length(std::min<int64_t>(row, kPieceLength)),
        row_length(row),
        count(ceil_div(row, kPieceLength)),
        of_row(count) {}
};

// The mean of each piece and its squared distances from that, about the piece's own mean: nothing cancels.
template <class scalar_t, int V>
__global__ void __launch_bounds__(kOnChipThreads, kFewBlocks)
    piece_statistics(const scalar_t* z, const __grid_constant__ Rows rows, const __grid_constant__ OnChip plan,
                     const __grid_constant__ Pieces pieces, void* statistics) {
  using acc_t = Accumulator<scalar_t>;
  const OnChipPlace at(plan, rows, pieces.of_row, V);  // n is the row of z, c the piece
  const int64_t begin = at.c * pieces.length;
  const int length = int(min(pieces.length, pieces.row_length - begin));
  Packed<scalar_t, V> held[kOnChipSlots<V>];
  // Pieces of a block may differ in length: the loop's bound is that of the longest.
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
  const acc_t mean = group_sum(sum, 1 << plan.lane_bits) / acc_t(length);
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
  squares = group_sum(squares, 1 << plan.lane_bits);
  if (!at.first) return;
  acc_t* out = static_cast<acc_t*>(statistics);
  out[at.row] = mean;
  out[rows.samples * rows.channels + at.row] = squares;
}

// input_state of a channel, a block each: from its pieces, or the running statistics.
template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    channel_statistics(const __grid_constant__ BatchNormShrink op, const __grid_constant__ Pieces pieces,
                       const acc_t* statistics) {
  const int64_t c = blockIdx.x, channels = op.rows.channels;
  const int64_t total = op.rows.samples * pieces.count;
  const acc_t* squares_of = statistics + op.rows.samples * channels * pieces.count;
  acc_t mean, variance;
  if (op.input.kind == NormKind::kRunning) {
    mean = value_or<acc_t>(op.input.running_mean, c, 0);
    variance = value_or<acc_t>(op.input.running_var, c, 1);
  } else {
    const auto place = [&](int64_t i, int64_t* piece) {
      const int64_t n = pieces.of_row.divide(i);
      *piece = n * channels * pieces.count + c * pieces.count + (i - n * pieces.count);
      return acc_t(min(pieces.length, pieces.row_length - (i - n * pieces.count) * pieces.length));
    };
    const acc_t count = acc_t(op.rows.samples) * acc_t(op.rows.length);
    acc_t sum = 0, squares = 0;
    int64_t piece;
    for (int64_t i = threadIdx.x; i < total; i += kThreads) {
      const acc_t length = place(i, &piece);
      sum += length * statistics[piece];
    }
    mean = block_sum(sum) / count;
    for (int64_t i = threadIdx.x; i < total; i += kThreads) {
      const acc_t length = place(i, &piece);
      const acc_t distance = statistics[piece] - mean;
      squares += squares_of[piece] + length * (distance * distance);
    }
    squares = block_sum(squares);
    variance = squares / count;
    if (threadIdx.x == 0) {
      // apply_input_norm, which comes later, counts the batch: here every block reads the counter.
      const int64_t batches = op.input.batches == nullptr ? 1 : *op.input.batches + 1;
      update_running(op.input, c, mean, squares, count, batches);
    }
  }
  if (threadIdx.x > 0) return;
  acc_t* state = static_cast<acc_t*>(op.input_state);
  state[c] = mean;
  state[channels + c] = rstd_of(variance, op.input.eps);
}

template <class scalar, int V>
struct NormAbsSum {
  using scalar_t = scalar;
  static constexpr int kVector = V;
  static constexpr int kSums = 1;
  using acc_t = Accumulator<scalar_t>;
  using Item = Packed<scalar_t, V>;

  const scalar_t* z;
  InputNorm<acc_t> input;
  Divisor channels;

  __device__ __forceinline__ Item load(int64_t, int64_t, int64_t element, int64_t left) const {
    return cuda::load<V>(left, z + element);
  }
  template <int W>
  __device__ __forceinline__ void add(int64_t row, int64_t, int64_t, int64_t left, const Item& item,
                                      acc_t (&sums)[kSums][W]) const {
    if (left <= 0) return;
    const auto channel = input.channel(row - channels.divide(row) * channels.value);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const acc_t x = channel.x(widen(unpack(item).value[j]));
      sums[0][j % W] += magnitude_of(x);
    }
  }
};

// tau of a row, the same in both directions.
template <class acc_t>
struct Thresholds {
  const acc_t *alpha, *statistic;
  int64_t outputs;
  bool per_sample;

  __device__ __forceinline__ acc_t at(int64_t n, int64_t c, int64_t channels) const {
    const acc_t a = alpha[n * outputs + (outputs == 1 ? 0 : c)];
    return relu(a * statistic[per_sample ? n : n * channels + c]);
  }
};

template <class scalar_t, int V>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    apply_input_norm(const __grid_constant__ BatchNormShrink op, const __grid_constant__ RowWalk walk,
                     const __grid_constant__ InputNorm<Accumulator<scalar_t>> input,
                     const __grid_constant__ Thresholds<Accumulator<scalar_t>> thresholds) {
  using acc_t = Accumulator<scalar_t>;
  constexpr int kSlots = kElementwiseSlots<V>;
  const scalar_t* z = static_cast<const scalar_t*>(op.x);
  const scalar_t* residual = static_cast<const scalar_t*>(op.residual);
  scalar_t* y = static_cast<scalar_t*>(op.y);
  if (blockIdx.x == 0 && threadIdx.x == 0 && op.input.kind == NormKind::kBatch && op.input.batches != nullptr) {
    ++*op.input.batches;
  }
  // Last part first: the end of z is what the sum before this kernel left in the cache.
  const int64_t base = (int64_t(gridDim.x) - 1 - blockIdx.x) * (kThreads * kSlots) + threadIdx.x;

  RowWalk::Place place[kSlots];
  Packed<scalar_t, V> values[kSlots], added[kSlots];
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const RowWalk::Place p = walk.locate(base + i * kThreads, V);
    place[i] = p;
    values[i] = load_if<V>(p.inside, z + p.element);
    added[i] = load_if<V>(p.inside && residual != nullptr, residual + p.element);
  }
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const RowWalk::Place p = place[i];
    if (!p.inside) continue;
    const auto channel = input.channel(p.c);
    const acc_t tau = thresholds.at(p.n, p.c, op.rows.channels);
    Vector<scalar_t, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const acc_t x = channel.x(widen(unpack(values[i]).value[j]));
      result.value[j] = narrow<scalar_t>(drsn::soft_threshold(x, tau) + acc_t(widen(unpack(added[i]).value[j])));
    }
    store<V>(V, y + p.element, result);
  }
}

// What both passes of the backward do to an element.
template <class acc_t>
struct Element {
  acc_t passed, sign, xhat;  // active * g; sign of x

  __device__ __forceinline__ Element(const typename InputNorm<acc_t>::Channel& channel, acc_t tau, acc_t z, acc_t g) {
    const acc_t x = channel.x(z);
    const unsigned mask = element_mask(x, tau);
    passed = mask >> kActive & 1 ? g : acc_t(0);
    sign = mask >> kNonzero & 1 ? (mask >> kNegative & 1 ? acc_t(-1) : acc_t(1)) : acc_t(0);
    xhat = channel.xhat(z);
  }
};

// The sums of a row that say everything about it but v, which is along each sign.
enum RowSum { kPassedAlong, kPassed, kPassedXhat, kSign, kSignXhat, kRowSums };

template <class scalar, int V>
struct NormRowSums {
  using scalar_t = scalar;
  static constexpr int kVector = V;
  static constexpr int kSums = kRowSums;
  using acc_t = Accumulator<scalar_t>;
  struct Item {
    Packed<scalar_t, V> g, z;
  };

  const scalar_t *grad, *z;
  InputNorm<acc_t> input;
  Thresholds<acc_t> thresholds;
  Divisor channels;

  __device__ __forceinline__ Item load(int64_t, int64_t, int64_t element, int64_t left) const {
    return {cuda::load<V>(left, grad + element), cuda::load<V>(left, z + element)};
  }
  template <int W>
  __device__ __forceinline__ void add(int64_t row, int64_t, int64_t, int64_t left, const Item& item,
                                      acc_t (&sums)[kSums][W]) const {
    if (left <= 0) return;
    const int64_t n = channels.divide(row);
    const int64_t c = row - n * channels.value;
    const auto channel = input.channel(c);
    const acc_t tau = thresholds.at(n, c, channels.value);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const Element<acc_t> e(channel, tau, widen(unpack(item.z).value[j]), widen(unpack(item.g).value[j]));
      sums[kPassedAlong][j % W] += e.passed * e.sign;
      sums[kPassed][j % W] += e.passed;
      sums[kPassedXhat][j % W] += e.passed * e.xhat;
      sums[kSign][j % W] += e.sign;
      sums[kSignXhat][j % W] += e.sign * e.xhat;
    }
  }
};

// The gradients of a channel's weight and bias, a block each, and in `means` both divided by the numbers of a channel.
template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    input_gradients(const __grid_constant__ Rows rows, const acc_t* row_sums, const acc_t* share, acc_t* dweight,
                    acc_t* dbias, acc_t* means) {
  const int64_t c = blockIdx.x, channels = rows.channels;
  const int64_t count = rows.samples * channels;
  acc_t weight = 0, bias = 0;
  for (int64_t n = threadIdx.x; n < rows.samples; n += kThreads) {
    const int64_t row = n * channels + c;
    weight += row_sums[kPassedXhat * count + row] + share[row] * row_sums[kSignXhat * count + row];
    bias += row_sums[kPassed * count + row] + share[row] * row_sums[kSign * count + row];
  }
  weight = block_sum(weight);
  bias = block_sum(bias);
  if (threadIdx.x > 0) return;
  const acc_t numbers = acc_t(rows.samples) * acc_t(rows.length);
  means[c] = weight / numbers;
  means[channels + c] = bias / numbers;
  if (dweight != nullptr) dweight[c] = weight;
  if (dbias != nullptr) dbias[c] = bias;
}

// dz. `means` are those of input_gradients where they come back through the batch's statistics, else null.
template <class scalar_t, int V>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    input_norm_backward(const __grid_constant__ BatchNormShrinkBackward op, const __grid_constant__ RowWalk walk,
                        const __grid_constant__ InputNorm<Accumulator<scalar_t>> input,
                        const __grid_constant__ Thresholds<Accumulator<scalar_t>> thresholds,
                        const Accumulator<scalar_t>* share, const Accumulator<scalar_t>* means) {
  using acc_t = Accumulator<scalar_t>;
  constexpr int kSlots = kElementwiseSlots<V>;
  const scalar_t* grad = static_cast<const scalar_t*>(op.grad);
  const scalar_t* z = static_cast<const scalar_t*>(op.z);
  scalar_t* dz = static_cast<scalar_t*>(op.dx);
  const int64_t channels = op.rows.channels;
  // Last part first: the end of grad and z is what the sums before this kernel left in the cache.
  const int64_t base = (int64_t(gridDim.x) - 1 - blockIdx.x) * (kThreads * kSlots) + threadIdx.x;

  RowWalk::Place place[kSlots];
  Packed<scalar_t, V> g[kSlots], values[kSlots];
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const RowWalk::Place p = walk.locate(base + i * kThreads, V);
    place[i] = p;
    g[i] = load_if<V>(p.inside, grad + p.element);
    values[i] = load_if<V>(p.inside, z + p.element);
  }
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const RowWalk::Place p = place[i];
    if (!p.inside) continue;
    const auto channel = input.channel(p.c);
    const acc_t tau = thresholds.at(p.n, p.c, channels);
    const acc_t v = share[p.n * channels + p.c];
    const acc_t dweight = means == nullptr ? acc_t(0) : means[p.c];
    const acc_t dbias = means == nullptr ? acc_t(0) : means[channels + p.c];
    Vector<scalar_t, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const Element<acc_t> e(channel, tau, widen(unpack(values[i]).value[j]), widen(unpack(g[i]).value[j]));
      const acc_t dx = e.passed + e.sign * v;
      result.value[j] = narrow<scalar_t>(channel.scale * (dx - (dbias + e.xhat * dweight)));
    }
    store<V>(V, dz + p.element, result);
  }
}

Reduction row_reduction(const Rows& rows) { return Reduction(row_axes(rows, false)); }

struct ForwardParts {
  GateForward gate;
  void *statistics, *sums;  // of the pieces; what the means need
  int64_t bytes;

  ForwardParts(const BatchNormShrink& op, void* workspace) {
    Carve carve(workspace, op.dtype);
    const bool batch = op.input.kind == NormKind::kBatch;
    gate = gate_forward_of(op, carve);
    statistics = carve.take(batch ? 2 * op.rows.samples * op.rows.channels * Pieces(op.rows.length).count : 0);
    sums = carve.take(row_reduction(op.rows).workspace_elements());
    bytes = carve.used();
  }
};

struct BackwardParts {
  GateBackward gate;
  void *statistic, *row_sums, *share, *sums, *gradients;
  int64_t bytes;

  BackwardParts(const BatchNormShrinkBackward& op, void* workspace) {
    Carve carve(workspace, op.dtype);
    const int64_t rows = op.rows.samples * op.rows.channels;
    gate = gate_backward_of(op, carve);
    statistic = carve.take(op.per_sample ? op.rows.samples : 0);
    row_sums = carve.take(kRowSums * rows);
    share = carve.take(rows);
    sums = carve.take(kRowSums * row_reduction(op.rows).workspace_elements());
    gradients = carve.take(2 * op.rows.channels);
    bytes = carve.used();
  }
};

}  // namespace

int64_t batch_norm_shrink_workspace(const BatchNormShrink& op) { return ForwardParts(op, nullptr).bytes; }

cudaError_t batch_norm_shrink(const BatchNormShrink& op, void* workspace, cudaStream_t stream) {
  const ForwardParts parts(op, workspace);
  const Rows& rows = op.rows;
  return dispatch(
      op.dtype, [&](int V) { return aligned(op.x, op.y, op.residual) && vectors_fit(rows, V); },
      [&](auto scalar, auto V) {
        using scalar_t = decltype(scalar);
        using acc_t = Accumulator<scalar_t>;
        const scalar_t* z = static_cast<const scalar_t*>(op.x);
        const Pieces pieces(rows.length);
        if (op.input.kind == NormKind::kBatch) {
          const Rows of_pieces{rows.samples * rows.channels, pieces.count, pieces.length, false};
          const OnChip plan = plan_on_chip(of_pieces, false, V);
          DRSN_CUDA_TRY(launch(&piece_statistics<scalar_t, V>, plan.blocks, plan.threads, stream, z, of_pieces, plan,
                               pieces, parts.statistics));
        }
        DRSN_CUDA_TRY(launch(&channel_statistics<acc_t>, rows.channels, kThreads, stream, op, pieces,
                             static_cast<const acc_t*>(parts.statistics)));
        const InputNorm<acc_t> input(op.input, op.input_state, rows.channels);
        const NormAbsSum<scalar_t, V> abs_sum{z, input, Divisor(rows.channels)};
        DRSN_CUDA_TRY(reduce<false>(op.dtype, abs_sum, row_reduction(rows),
                                    {Target{op.mean, true, double(rows.length)}}, parts.sums, stream));
        DRSN_CUDA_TRY(gate_forward(op.dtype, parts.gate, stream));
        const Thresholds<acc_t> thresholds{static_cast<const acc_t*>(op.state) + parts.gate.layout.alpha,
                                           static_cast<const acc_t*>(op.per_sample ? parts.gate.statistic : op.mean),
                                           op.gate.outputs, op.per_sample};
        const RowWalk walk(rows, V);
        return launch(&apply_input_norm<scalar_t, V>, elementwise_blocks(walk.total, V), kThreads, stream, op, walk,
                      input, thresholds);
      });
}

int64_t batch_norm_shrink_backward_workspace(const BatchNormShrinkBackward& op) {
  return BackwardParts(op, nullptr).bytes;
}

cudaError_t batch_norm_shrink_backward(const BatchNormShrinkBackward& op, void* workspace, cudaStream_t stream) {
  BackwardParts parts(op, workspace);
  const Rows& rows = op.rows;
  if (op.per_sample) {
    DRSN_CUDA_TRY(sample_statistics(op.dtype, op.mean, rows.samples, rows.channels, parts.statistic, stream));
  }
  return dispatch(
      op.dtype, [&](int V) { return aligned(op.grad, op.z, op.dx) && vectors_fit(rows, V); },
      [&](auto scalar, auto V) {
        using scalar_t = decltype(scalar);
        using acc_t = Accumulator<scalar_t>;
        const InputNorm<acc_t> input(op.input, op.input_state, rows.channels);
        const Thresholds<acc_t> thresholds{static_cast<const acc_t*>(op.state) + parts.gate.layout.alpha,
                                           static_cast<const acc_t*>(op.per_sample ? parts.statistic : op.mean),
                                           op.gate.outputs, op.per_sample};
        const NormRowSums<scalar_t, V> sums{static_cast<const scalar_t*>(op.grad), static_cast<const scalar_t*>(op.z),
                                            input, thresholds, Divisor(rows.channels)};
        acc_t* row_sums = static_cast<acc_t*>(parts.row_sums);
        const int64_t count = rows.samples * rows.channels;
        Target targets[kRowSums];
        for (int s = 0; s < kRowSums; ++s) targets[s] = {row_sums + s * count, true, 1};
        DRSN_CUDA_TRY(reduce<false>(op.dtype, sums, row_reduction(rows), targets, parts.sums, stream));

        const bool inputs = op.dx != nullptr || op.dinput_weight != nullptr || op.dinput_bias != nullptr;
        parts.gate.active_sum = row_sums + kPassedAlong * count;
        if (inputs) parts.gate.share = parts.share;
        DRSN_CUDA_TRY(gate_backward(op.dtype, parts.gate, stream));
        if (!inputs) return cudaSuccess;
        const acc_t* share = static_cast<const acc_t*>(parts.share);
        acc_t* gradients = static_cast<acc_t*>(parts.gradients);
        DRSN_CUDA_TRY(launch(&input_gradients<acc_t>, rows.channels, kThreads, stream, rows,
                             static_cast<const acc_t*>(row_sums), share, static_cast<acc_t*>(op.dinput_weight),
                             static_cast<acc_t*>(op.dinput_bias), gradients));
        if (op.dx == nullptr) return cudaSuccess;
        const RowWalk walk(rows, V);
        return launch(&input_norm_backward<scalar_t, V>, elementwise_blocks(walk.total, V), kThreads, stream, op, walk,
                      input, thresholds, share,
                      op.input.kind == NormKind::kBatch ? static_cast<const acc_t*>(gradients) : nullptr);
      });
}

}  // namespace drsn::cuda
