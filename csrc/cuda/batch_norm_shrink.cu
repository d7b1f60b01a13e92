// batch_norm_shrink and its backward: gated_shrink of x = norm(z), which is never in memory. The forward reads z three
// times: for its channels' statistics, the means of |x| and the result; the backward twice: for five sums of each row
// and for dz.
#include "cuda/backend.h"
#include "cuda/batch_norm.cuh"
#include "cuda/gate.cuh"
#include "cuda/reduce.cuh"

namespace drsn::cuda {
namespace {

// The sample and the first channel of a thread of a reduction over rows.
template <bool channels_last>
struct RowOf {
  int64_t n, c;

  __device__ __forceinline__ RowOf(const Divisor& channels, int64_t outer, int64_t inner) {
    n = channels_last ? outer : channels.divide(outer);
    c = channels_last ? inner : outer - n * channels.value;
  }
};

template <class scalar, int V, bool channels_last>
struct NormAbsSum {
  using scalar_t = scalar;
  static constexpr int kVector = V;
  static constexpr int kSums = 1;
  static constexpr int kTensors = 1;
  static constexpr int kChannels = channels_last ? V : 1;
  using acc_t = Accumulator<scalar_t>;
  using Item = Packed<scalar_t, V>;
  struct Row {
    typename InputNorm<acc_t>::Channel channel[kChannels] = {};

    __device__ __forceinline__ Row(const NormAbsSum& op, bool exists, int64_t outer, int64_t inner) {
      if (exists) op.input.channels(RowOf<channels_last>(op.channels, outer, inner).c, channel);
    }
  };

  const scalar_t* z;
  InputNorm<acc_t> input;
  Divisor channels;

  template <class left_t>
  __device__ __forceinline__ Item load(const Row&, int64_t, int64_t element, left_t left) const {
    return cuda::load<V>(left, z + element);
  }
  template <int W, class left_t>
  __device__ __forceinline__ void add(const Row& row, int64_t, int64_t, left_t left, const Item& packed,
                                      acc_t (&sums)[kSums][W]) const {
    if (left <= 0) return;
    const Vector<acc_t, V> item = unpack_wide(packed);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const acc_t x = row.channel[j % kChannels].x(item.value[j]);
      sums[0][j % W] += magnitude_of(x);
    }
  }
};

// tau of each row.
template <class acc_t>
struct Thresholds {
  const acc_t *alpha, *statistic;
  int64_t outputs;
  bool per_sample;

  // `statistic` is of the samples where per_sample.
  template <class Op>
  Thresholds(const Op& op, const StateOffsets& in_state, const void* statistic)
      : alpha(static_cast<const acc_t*>(op.state) + in_state.alpha),
        statistic(static_cast<const acc_t*>(op.per_sample ? statistic : op.mean)),
        outputs(op.gate.outputs),
        per_sample(op.per_sample) {}
  // N channels from c.
  template <int N>
  __device__ __forceinline__ void read(int64_t n, int64_t c, int64_t channels, acc_t (&tau)[N]) const {
    acc_t alphas[N], statistics[N];
    values(alphas, alpha, n, c, outputs);
    values(statistics, statistic, n, c, per_sample ? 1 : channels);
#pragma unroll
    for (int j = 0; j < N; ++j) tau[j] = relu(alphas[j] * statistics[j]);
  }

 private:
  // `count` of each sample, one or one of each channel.
  template <int N>
  static __device__ __forceinline__ void values(acc_t (&out)[N], const acc_t* data, int64_t n, int64_t c,
                                                int64_t count) {
    const acc_t* first = data + n * count + (count == 1 ? 0 : c);
    out[0] = first[0];
#pragma unroll
    for (int j = 1; j < N; ++j) out[j] = count == 1 ? out[0] : first[j];
  }
};

template <class scalar_t, int V, bool channels_last>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    apply_input_norm(const __grid_constant__ BatchNormShrink op, const __grid_constant__ ChannelWalk walk,
                     const __grid_constant__ InputNorm<Accumulator<scalar_t>> input,
                     const __grid_constant__ Thresholds<Accumulator<scalar_t>> thresholds) {
  wait_for_previous();
  using acc_t = Accumulator<scalar_t>;
  using Place = ChannelPlace<channels_last, V>;
  constexpr int kSlots = kChannelSlots<V>;
  const scalar_t* z = static_cast<const scalar_t*>(op.x);
  const scalar_t* residual = static_cast<const scalar_t*>(op.residual);
  scalar_t* y = static_cast<scalar_t*>(op.y);
  count_batch(op.input);  // input_statistics could not: each of its blocks reads the counter
  Place at(walk, gridDim.x - 1 - blockIdx.x);
  if (!at.inside(0)) return;
  typename InputNorm<acc_t>::Channel channel[Place::kChannels];
  acc_t tau[Place::kChannels];
  input.channels(at.c, channel);
  thresholds.read(at.sample, at.c, walk.channels, tau);
  Packed<scalar_t, V> values[kSlots], residuals[kSlots];
  typename Place::index_t sample[kSlots];
  int64_t element[kSlots];
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    sample[i] = at.sample;
    element[i] = at.element;
    values[i] = load_if<V>(at.inside(i), z + at.element);
    residuals[i] = load_if<V>(at.inside(i) && residual != nullptr, residual + at.element);
    at.advance(walk);
  }
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    if (!at.inside(i)) break;
    if (i > 0 && sample[i] != sample[i - 1]) thresholds.read(sample[i], at.c, walk.channels, tau);
    const Vector<acc_t, V> mine = unpack_wide(values[i]), beside = unpack_wide(residuals[i]);
    Vector<scalar_t, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const int k = j % Place::kChannels;
      const acc_t x = channel[k].x(mine.value[j]);
      result.value[j] = narrow<scalar_t>(drsn::soft_threshold(x, tau[k]) + beside.value[j]);
    }
    store<V>(true, y + element[i], result);
  }
}

// An element of z and of the gradient, for both passes of the backward.
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

// Sums of a row; with the row's share they give its terms of the gradients of weight and bias.
enum RowSum { kPassedAlong, kPassed, kPassedXhat, kSign, kSignXhat, kRowSums };

template <class scalar, int V, bool channels_last>
struct NormRowSums {
  using scalar_t = scalar;
  static constexpr int kVector = V;
  static constexpr int kSums = kRowSums;
  static constexpr int kTensors = 2;
  static constexpr int kChannels = channels_last ? V : 1;
  using acc_t = Accumulator<scalar_t>;
  struct Item {
    Packed<scalar_t, V> g, z;
  };
  struct Row {
    typename InputNorm<acc_t>::Channel channel[kChannels] = {};
    acc_t tau[kChannels] = {};

    __device__ __forceinline__ Row(const NormRowSums& op, bool exists, int64_t outer, int64_t inner) {
      if (!exists) return;
      const RowOf<channels_last> at(op.channels, outer, inner);
      op.input.channels(at.c, channel);
      op.thresholds.read(at.n, at.c, op.channels.value, tau);
    }
  };

  const scalar_t *grad, *z;
  InputNorm<acc_t> input;
  Thresholds<acc_t> thresholds;
  Divisor channels;

  template <class left_t>
  __device__ __forceinline__ Item load(const Row&, int64_t, int64_t element, left_t left) const {
    return {cuda::load<V>(left, grad + element), cuda::load<V>(left, z + element)};
  }
  template <int W, class left_t>
  __device__ __forceinline__ void add(const Row& row, int64_t, int64_t, left_t left, const Item& item,
                                      acc_t (&sums)[kSums][W]) const {
    if (left <= 0) return;
    const Vector<acc_t, V> values = unpack_wide(item.z), grads = unpack_wide(item.g);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const int k = j % kChannels;
      const Element<acc_t> e(row.channel[k], row.tau[k], values.value[j], grads.value[j]);
      sums[kPassedAlong][j % W] += e.passed * e.sign;
      sums[kPassed][j % W] += e.passed;
      sums[kPassedXhat][j % W] += e.passed * e.xhat;
      sums[kSign][j % W] += e.sign;
      sums[kSignXhat][j % W] += e.sign * e.xhat;
    }
  }
};

// The gradients of each channel's weight and bias, a block per channel.
template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    input_gradients(const __grid_constant__ Rows rows, const acc_t* row_sums, const acc_t* share,
                    const __grid_constant__ InputGradients<acc_t> to) {
  wait_for_previous();
  const int64_t c = blockIdx.x;
  const int64_t count = rows.samples * rows.channels;
  acc_t weight = 0, bias = 0;
  for (int64_t n = threadIdx.x; n < rows.samples; n += kThreads) {
    const int64_t row = n * rows.channels + c;
    weight += row_sums[kPassedXhat * count + row] + share[row] * row_sums[kSignXhat * count + row];
    bias += row_sums[kPassed * count + row] + share[row] * row_sums[kSign * count + row];
  }
  weight = block_sum(weight);
  bias = block_sum(bias);
  if (threadIdx.x == 0) to.write(rows, c, weight, bias);
}

// dz. `means`, from input_gradients, is null where the statistics are constants: the running ones.
template <class scalar_t, int V, bool channels_last>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    input_norm_backward(const __grid_constant__ BatchNormShrinkBackward op, const __grid_constant__ ChannelWalk walk,
                        const __grid_constant__ InputNorm<Accumulator<scalar_t>> input,
                        const __grid_constant__ Thresholds<Accumulator<scalar_t>> thresholds,
                        const Accumulator<scalar_t>* share, const Accumulator<scalar_t>* means) {
  wait_for_previous();
  using acc_t = Accumulator<scalar_t>;
  using Place = ChannelPlace<channels_last, V>;
  constexpr int kSlots = kChannelSlots<V>;
  constexpr int kChannels = Place::kChannels;
  const scalar_t* grad = static_cast<const scalar_t*>(op.grad);
  const scalar_t* z = static_cast<const scalar_t*>(op.z);
  scalar_t* dz = static_cast<scalar_t*>(op.dx);
  Place at(walk, gridDim.x - 1 - blockIdx.x);
  if (!at.inside(0)) return;
  typename InputNorm<acc_t>::Channel channel[kChannels];
  acc_t dbias[kChannels], dweight[kChannels], tau[kChannels], row_share[kChannels];
  input.channels(at.c, channel);
  read_means(means, walk.channels, at.c, dbias, dweight);
  const auto read_row = [&](int64_t n) {
    thresholds.read(n, at.c, walk.channels, tau);
    channel_values(row_share, share, n * walk.channels + at.c, 0);
  };
  read_row(at.sample);
  Packed<scalar_t, V> grads[kSlots], values[kSlots];
  typename Place::index_t sample[kSlots];
  int64_t element[kSlots];
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    sample[i] = at.sample;
    element[i] = at.element;
    grads[i] = load_if<V>(at.inside(i), grad + at.element);
    values[i] = load_if<V>(at.inside(i), z + at.element);
    at.advance(walk);
  }
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    if (!at.inside(i)) break;
    if (i > 0 && sample[i] != sample[i - 1]) read_row(sample[i]);
    const Vector<acc_t, V> mine = unpack_wide(values[i]), above = unpack_wide(grads[i]);
    Vector<scalar_t, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const int k = j % kChannels;
      const Element<acc_t> e(channel[k], tau[k], mine.value[j], above.value[j]);
      const acc_t dx = e.passed + e.sign * row_share[k];
      result.value[j] = narrow<scalar_t>(channel[k].gradient(dx, e.xhat, dbias[k], dweight[k]));
    }
    store<V>(true, dz + element[i], result);
  }
}

Reduction row_reduction(const Rows& rows) { return Reduction(row_axes(rows_side_by_side(rows), false)); }

// True if vectors of V elements fit every kernel of these operators.
template <class Op>
bool vectors_fit(const Op& op, const Rows& rows, int V) {
  return channel_vectors_fit(rows, V) && aligned(op.input_state, op.input.weight, op.input.bias);
}

struct Forward {
  GateForward gate;
  void *piece_statistics, *sums;  // for input_statistics and for the means

  Forward(const BatchNormShrink& op, Carve& carve)
      : gate(op, carve),
        piece_statistics(carve.take(input_statistics_workspace(op.input, op.rows))),
        sums(carve.take(row_reduction(op.rows).workspace_elements())) {}
};

struct Backward {
  GateBackward gate;
  void *sample_statistic, *row_sums, *share, *sums, *gradients;

  Backward(const BatchNormShrinkBackward& op, Carve& carve) : gate(op, carve) {
    const int64_t rows = op.rows.samples * op.rows.channels;
    sample_statistic = carve.take(op.per_sample ? op.rows.samples : 0);
    row_sums = carve.take(kRowSums * rows);
    share = carve.take(rows);
    sums = carve.take(kRowSums * row_reduction(op.rows).workspace_elements());
    gradients = carve.take(2 * op.rows.channels);
  }
};

}  // namespace

int64_t batch_norm_shrink_workspace(const BatchNormShrink& op) { return workspace_of<Forward>(op); }

cudaError_t batch_norm_shrink(const BatchNormShrink& op, void* workspace, cudaStream_t stream) {
  Carve carve(workspace, op.dtype);
  const Forward to(op, carve);
  const Rows rows = rows_side_by_side(op.rows);
  DRSN_CUDA_TRY(input_statistics(op.dtype, op.input, rows, op.x, op.input_state, to.piece_statistics, stream));
  return dispatch(
      op.dtype, [&](int V) { return aligned(op.x, op.y, op.residual) && vectors_fit(op, rows, V); },
      [&](auto scalar, auto V) {
        using scalar_t = decltype(scalar);
        using acc_t = Accumulator<scalar_t>;
        const InputNorm<acc_t> input(op.input, op.input_state, rows.channels);
        return dispatch_layout(rows.channels_last, [&](auto channels_last) {
          const NormAbsSum<scalar_t, V, channels_last> abs_sum{static_cast<const scalar_t*>(op.x), input,
                                                               Divisor(rows.channels)};
          DRSN_CUDA_TRY(reduce<channels_last>(op.dtype, abs_sum, row_reduction(rows),
                                              {Target{op.mean, true, double(rows.length)}}, to.sums,
                                              Stream(stream, true)));
          DRSN_CUDA_TRY(gate_forward(to.gate, stream));
          const Thresholds<acc_t> thresholds(op, to.gate.at, to.gate.statistic);
          const ChannelPlan plan = plan_channels(rows, V, kChannelSlots<V>);
          return launch_next(&apply_input_norm<scalar_t, V, channels_last>, plan.blocks, plan.threads, stream, op,
                             ChannelWalk(rows, V, plan), input, thresholds);
        });
      });
}

int64_t batch_norm_shrink_backward_workspace(const BatchNormShrinkBackward& op) { return workspace_of<Backward>(op); }

cudaError_t batch_norm_shrink_backward(const BatchNormShrinkBackward& op, void* workspace, cudaStream_t stream) {
  Carve carve(workspace, op.dtype);
  Backward to(op, carve);
  const Rows rows = rows_side_by_side(op.rows);
  if (op.per_sample) DRSN_CUDA_TRY(sample_statistics(op.dtype, op.mean, rows, to.sample_statistic, stream));
  return dispatch(
      op.dtype, [&](int V) { return aligned(op.grad, op.z, op.dx) && vectors_fit(op, rows, V); },
      [&](auto scalar, auto V) {
        using scalar_t = decltype(scalar);
        using acc_t = Accumulator<scalar_t>;
        const InputNorm<acc_t> input(op.input, op.input_state, rows.channels);
        const Thresholds<acc_t> thresholds(op, to.gate.at, to.sample_statistic);
        acc_t* row_sums = static_cast<acc_t*>(to.row_sums);
        const int64_t count = rows.samples * rows.channels;
        Target targets[kRowSums];
        for (int s = 0; s < kRowSums; ++s) targets[s] = {row_sums + s * count, true, 1};
        return dispatch_layout(rows.channels_last, [&](auto channels_last) {
          const NormRowSums<scalar_t, V, channels_last> sums{static_cast<const scalar_t*>(op.grad),
                                                             static_cast<const scalar_t*>(op.z), input, thresholds,
                                                             Divisor(rows.channels)};
          DRSN_CUDA_TRY(reduce<channels_last>(op.dtype, sums, row_reduction(rows), targets, to.sums,
                                              Stream(stream, op.per_sample)));

          const bool inputs = op.dx != nullptr || op.dinput_weight != nullptr || op.dinput_bias != nullptr;
          to.gate.active_sum = row_sums + kPassedAlong * count;
          if (inputs) to.gate.share = to.share;
          DRSN_CUDA_TRY(gate_backward(to.gate, stream));
          if (!inputs) return cudaSuccess;
          const acc_t* share = static_cast<const acc_t*>(to.share);
          acc_t* gradients = static_cast<acc_t*>(to.gradients);
          DRSN_CUDA_TRY(launch_next(&input_gradients<acc_t>, rows.channels, kThreads, stream, rows,
                                    static_cast<const acc_t*>(row_sums), share,
                                    InputGradients<acc_t>{static_cast<acc_t*>(op.dinput_weight),
                                                          static_cast<acc_t*>(op.dinput_bias), gradients}));
          if (op.dx == nullptr) return cudaSuccess;
          const ChannelPlan plan = plan_channels(rows, V, kChannelSlots<V>);
          return launch_next(&input_norm_backward<scalar_t, V, channels_last>, plan.blocks, plan.threads, stream, op,
                             ChannelWalk(rows, V, plan), input, thresholds, share,
                             op.input.kind == NormKind::kBatch ? static_cast<const acc_t*>(gradients) : nullptr);
        });
      });
}

}  // namespace drsn::cuda
