// batch_norm_relu and its backward. The forward reads x twice: for its channels' statistics and for the result, whose
// kernel writes the zeros of the padding and the shortcut as well; the backward twice: for two sums of each channel,
// and for dx with the shortcut's gradient.
#include "cuda/backend.h"
#include "cuda/batch_norm.cuh"

namespace drsn::cuda {
namespace {

// `axis`: in positions.
struct Strides {
  int64_t sample, channel, position, axis[3];
};

Strides strides_of(bool channels_last, int64_t channels, const int64_t (&size)[3]) {
  const int64_t length = size[0] * size[1] * size[2];
  return {channels * length, channels_last ? 1 : length, channels_last ? channels : 1, {size[2] * size[1], size[2], 1}};
}

// How x, padded y and the shortcut lie to each other. The forward walks y, the backward x.
struct Geometry {
  Rows rows, walked;  // of x, and of the tensor that is walked
  bool shortcut_wanted;
  bool same;           // y is not padded, and no shortcut is wanted
  bool short_indices;  // of every axis of all three tensors, and of their positions
  int outer_axis;      // the axes before it have one position
  Divisor walked_size[3], stride;
  int64_t size[3], before[3], origin[3];  // of x; where x begins in y, and in the tensor that is walked
  int64_t zeros;                          // channels of the shortcut beside those of x
  Strides x, y, shortcut;

  template <class Op>
  Geometry(const Op& op, const void* shortcut_data, bool walks_y)
      : rows(op.rows),
        shortcut_wanted(shortcut_data != nullptr),
        outer_axis(2),
        stride(op.stride),
        zeros(op.shortcut_channels - op.rows.channels) {
    int64_t padded[3], kept[3];
    for (int k = 2; k >= 0; --k) {
      size[k] = op.spatial.size[k];
      before[k] = op.spatial.before[k];
      padded[k] = before[k] + size[k] + op.spatial.after[k];
      kept[k] = ceil_div(size[k], op.stride);
      origin[k] = walks_y ? before[k] : 0;
      walked_size[k] = Divisor(walks_y ? padded[k] : size[k]);
      if (padded[k] > 1) outer_axis = k;
    }
    const int64_t padded_length = padded[0] * padded[1] * padded[2];
    if (padded_length == 1) rows = rows_side_by_side(rows);
    walked = rows;
    if (walks_y) walked.length = padded_length;
    same = rows.length == padded_length && !shortcut_wanted;
    short_indices = std::max({rows.samples, op.shortcut_channels, padded_length, op.stride}) < int64_t(1) << 30;
    x = strides_of(rows.channels_last, rows.channels, size);
    y = strides_of(rows.channels_last, rows.channels, padded);
    shortcut = strides_of(rows.channels_last, op.shortcut_channels, kept);
  }

  // True if vectors of V elements stay whole in all three tensors.
  template <class Op>
  bool vectors_fit(const Op& op, int V) const {
    if (!channel_vectors_fit(rows, V) || !short_indices) return false;
    if (!rows.channels_last) return op.stride == 1;
    return aligned(op.state, op.norm.weight, op.norm.bias) &&
           (!shortcut_wanted || (zeros % V == 0 && zeros / 2 % V == 0));
  }

  struct Elements {
    int64_t x, y, shortcut;  // -1: none
  };
  // The elements that belong to a thread's vector of the tensor that is walked.
  template <bool walks_y, class Place>
  __device__ __forceinline__ Elements locate(const Place& at) const {
    if (same) return {at.element, at.element, -1};
    return short_indices ? locate_as<walks_y, int>(at) : locate_as<walks_y, typename Place::index_t>(at);
  }

 private:
  template <bool walks_y, class index_t, class Place>
  __device__ __forceinline__ Elements locate_as(const Place& at) const {
    using number_t = std::conditional_t<std::is_same_v<index_t, int>, unsigned, int64_t>;
    using unsigned_t = std::make_unsigned_t<index_t>;
    const index_t n = index_t(at.sample), c = index_t(at.c);
    number_t position = number_t(at.position) * Place::kLength;
    const Strides& other = walks_y ? x : y;
    index_t in_other = 0, in_shortcut = 0;
    bool inside = true, kept = shortcut_wanted;
#pragma unroll
    for (int k = 2; k >= 0; --k) {
      if (k < outer_axis) break;
      const number_t next = k == outer_axis ? 0 : walked_size[k].divide(position);
      const index_t here = index_t(position - next * number_t(walked_size[k].value)) - index_t(origin[k]);
      position = next;
      inside = inside && unsigned_t(here) < unsigned_t(size[k]);  // not negative either
      in_other += (walks_y ? here : here + index_t(before[k])) * index_t(other.axis[k]);
      if (!shortcut_wanted) continue;
      const index_t quotient = index_t(stride.divide(number_t(inside ? here : 0)));
      kept = kept && quotient * index_t(stride.value) == here;
      in_shortcut += quotient * index_t(shortcut.axis[k]);
    }
    const int64_t element = element_of(other, n, c, in_other);
    return {walks_y ? (inside ? element : -1) : at.element, walks_y ? at.element : element,
            inside && kept ? element_of(shortcut, n, c + index_t(zeros / 2), in_shortcut) : -1};
  }
  template <class index_t>
  static __device__ __forceinline__ int64_t element_of(const Strides& of, index_t n, index_t c, index_t position) {
    return n * of.sample + c * int64_t(index_t(of.channel)) + position * int64_t(index_t(of.position));
  }
};

// What each kernel is given beside the operator.
template <class acc_t>
struct View {
  Geometry geometry;
  InputNorm<acc_t> input;
  ChannelWalk walk;

  template <class Op>
  View(const Op& op, const Geometry& seen, int V, const ChannelPlan& plan)
      : geometry(seen), input(op.norm, op.state, seen.rows.channels), walk(seen.walked, V, plan) {}
};

// The blocks walk y from its end: the statistics have left that of x in the cache.
template <class scalar_t, int V, bool channels_last>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    apply_norm_relu(const __grid_constant__ BatchNormRelu op,
                    const __grid_constant__ View<Accumulator<scalar_t>> view) {
  wait_for_previous();
  using acc_t = Accumulator<scalar_t>;
  using Place = ChannelPlace<channels_last, V>;
  const Geometry& geometry = view.geometry;
  const scalar_t* x = static_cast<const scalar_t*>(op.x);
  scalar_t* y = static_cast<scalar_t*>(op.y);
  scalar_t* shortcut = static_cast<scalar_t*>(op.shortcut);
  count_batch(op.norm);  // input_statistics could not: each of its blocks reads the counter
  Place at(view.walk, gridDim.x - 1 - blockIdx.x);
  if (!at.exists) return;
  typename InputNorm<acc_t>::Channel channel[Place::kChannels];
  view.input.channels(at.c, channel);
  Packed<scalar_t, V> values[kChannelSlots<V>];
  Geometry::Elements elements[kChannelSlots<V>];
#pragma unroll
  for (int i = 0; i < kChannelSlots<V>; ++i) {
    elements[i] = geometry.locate<true>(at);
    values[i] = load_if<V>(at.inside(i) && elements[i].x >= 0, x + elements[i].x);
    at.advance(view.walk);
  }
#pragma unroll
  for (int i = 0; i < kChannelSlots<V>; ++i) {
    if (!at.inside(i)) break;
    const Vector<acc_t, V> mine = unpack_wide(values[i]);
    Vector<scalar_t, V> result{};
    if (elements[i].x >= 0) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        result.value[j] = narrow<scalar_t>(relu(channel[j % Place::kChannels].x(mine.value[j])));
      }
    }
    store<V>(true, y + elements[i].y, result);
    if (elements[i].shortcut < 0) continue;
    store<V>(true, shortcut + elements[i].shortcut, unpack(values[i]));
    // Channel c of x fills the zeros c, c + C, c + 2 C, ...: those before x, then those behind it.
    const int64_t before = geometry.zeros / 2;
    for (int64_t zero = at.c; zero < geometry.zeros; zero += view.walk.channels) {
      const int64_t ahead = (zero < before ? zero : zero + view.walk.channels) - before - at.c;  // of c, in channels
      store<V>(true, shortcut + elements[i].shortcut + ahead * geometry.shortcut.channel, Vector<scalar_t, V>{});
    }
  }
}

// An element of x and of the gradient, for both passes of the backward; NaN lets the gradient pass, as relu does.
template <class acc_t>
struct Element {
  acc_t passed, xhat;

  __device__ __forceinline__ Element(const typename InputNorm<acc_t>::Channel& channel, acc_t x, acc_t g)
      : passed(channel.x(x) <= acc_t(0) ? acc_t(0) : g), xhat(channel.xhat(x)) {}
};

// For the gradients of bias and weight: two sums of each piece of a channel.
template <class scalar_t, int V, bool channels_last>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    norm_relu_sums(const __grid_constant__ BatchNormReluBackward op,
                   const __grid_constant__ View<Accumulator<scalar_t>> view, Accumulator<scalar_t>* partials) {
  wait_for_previous();
  using acc_t = Accumulator<scalar_t>;
  using Place = ChannelPlace<channels_last, V>;
  constexpr int kChannels = Place::kChannels;
  const scalar_t* x = static_cast<const scalar_t*>(op.x);
  const scalar_t* grad = static_cast<const scalar_t*>(op.grad);
  Place at(view.walk, blockIdx.x);
  typename InputNorm<acc_t>::Channel channel[kChannels] = {};
  if (at.exists) view.input.channels(at.c, channel);
  acc_t sums[2 * kChannels] = {};
#pragma unroll 1
  for (; at.inside(0); at.left -= at.depth * kChannelSlots<V>) {
    Packed<scalar_t, V> values[kChannelSlots<V>], grads[kChannelSlots<V>];
#pragma unroll
    for (int i = 0; i < kChannelSlots<V>; ++i) {
      const Geometry::Elements e = view.geometry.template locate<false>(at);
      values[i] = load_if<V>(at.inside(i), x + e.x);
      grads[i] = load_if<V>(at.inside(i), grad + e.y);
      at.advance(view.walk);
    }
#pragma unroll
    for (int i = 0; i < kChannelSlots<V>; ++i) {
      if (!at.inside(i)) break;
      const Vector<acc_t, V> mine = unpack_wide(values[i]), above = unpack_wide(grads[i]);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const Element<acc_t> e(channel[j % kChannels], mine.value[j], above.value[j]);
        sums[j % kChannels] += e.passed;
        sums[kChannels + j % kChannels] += e.passed * e.xhat;
      }
    }
  }
  at.sum(sums);
  if (!at.first()) return;
#pragma unroll
  for (int j = 0; j < kChannels; ++j) {
    partials[at.partial(view.walk, j)] = sums[j];
    partials[at.partial(view.walk, view.walk.channels + j)] = sums[kChannels + j];
  }
}

// The gradients of each channel's weight and bias, a block per channel.
template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    fold_channel_sums(const __grid_constant__ Rows rows, int64_t pieces, const acc_t* partials,
                      const __grid_constant__ InputGradients<acc_t> to) {
  wait_for_previous();
  const int64_t c = blockIdx.x;
  acc_t weight = 0, bias = 0;
  for (int64_t i = threadIdx.x; i < pieces; i += kThreads) {
    bias += partials[c * pieces + i];
    weight += partials[(rows.channels + c) * pieces + i];
  }
  weight = block_sum(weight);
  bias = block_sum(bias);
  if (threadIdx.x == 0) to.write(rows, c, weight, bias);
}

// dx. `means`, from fold_channel_sums, is null where the statistics are constants: the running ones.
template <class scalar_t, int V, bool channels_last>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    norm_relu_backward(const __grid_constant__ BatchNormReluBackward op,
                       const __grid_constant__ View<Accumulator<scalar_t>> view, const Accumulator<scalar_t>* means) {
  wait_for_previous();
  using acc_t = Accumulator<scalar_t>;
  using Place = ChannelPlace<channels_last, V>;
  constexpr int kChannels = Place::kChannels;
  const scalar_t* x = static_cast<const scalar_t*>(op.x);
  const scalar_t* grad = static_cast<const scalar_t*>(op.grad);
  const scalar_t* grad_shortcut = static_cast<const scalar_t*>(op.grad_shortcut);
  scalar_t* dx = static_cast<scalar_t*>(op.dx);
  Place at(view.walk, gridDim.x - 1 - blockIdx.x);
  if (!at.exists) return;
  typename InputNorm<acc_t>::Channel channel[kChannels];
  acc_t dbias[kChannels], dweight[kChannels];
  view.input.channels(at.c, channel);
  read_means(means, view.walk.channels, at.c, dbias, dweight);
  Packed<scalar_t, V> values[kChannelSlots<V>], grads[kChannelSlots<V>], others[kChannelSlots<V>];
  int64_t element[kChannelSlots<V>];
#pragma unroll
  for (int i = 0; i < kChannelSlots<V>; ++i) {
    const Geometry::Elements e = view.geometry.template locate<false>(at);
    element[i] = e.x;
    values[i] = load_if<V>(at.inside(i), x + e.x);
    grads[i] = load_if<V>(at.inside(i), grad + e.y);
    const bool kept = at.inside(i) && e.shortcut >= 0;
    others[i] = load_if<V>(kept, grad_shortcut + (kept ? e.shortcut : 0));
    at.advance(view.walk);
  }
#pragma unroll
  for (int i = 0; i < kChannelSlots<V>; ++i) {
    if (!at.inside(i)) break;
    const Vector<acc_t, V> mine = unpack_wide(values[i]), above = unpack_wide(grads[i]),
                           beside = unpack_wide(others[i]);
    Vector<scalar_t, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const int k = j % kChannels;
      const Element<acc_t> e(channel[k], mine.value[j], above.value[j]);
      const acc_t past_norm = channel[k].gradient(e.passed, e.xhat, dbias[k], dweight[k]);
      result.value[j] = narrow<scalar_t>(past_norm + beside.value[j]);
    }
    store<V>(true, dx + element[i], result);
  }
}

struct Backward {
  Geometry geometry;
  void *partials, *means;

  Backward(const BatchNormReluBackward& op, Carve& carve)
      : geometry(op, op.grad_shortcut, false),
        partials(carve.take(2 * channel_partials(geometry.rows, plan_channel_sums))),
        means(carve.take(2 * op.rows.channels)) {}
};

}  // namespace

int64_t batch_norm_relu_workspace(const BatchNormRelu& op) {
  const Geometry geometry(op, op.shortcut, true);
  return input_statistics_workspace(op.norm, geometry.rows) * accumulator_bytes(op.dtype);
}

cudaError_t batch_norm_relu(const BatchNormRelu& op, void* workspace, cudaStream_t stream) {
  const Geometry geometry(op, op.shortcut, true);
  DRSN_CUDA_TRY(input_statistics(op.dtype, op.norm, geometry.rows, op.x, op.state, workspace, stream));
  return dispatch(
      op.dtype, [&](int V) { return aligned(op.x, op.y, op.shortcut) && geometry.vectors_fit(op, V); },
      [&](auto scalar, auto V) {
        using scalar_t = decltype(scalar);
        const View<Accumulator<scalar_t>> view(op, geometry, V, plan_channels(geometry.walked, V, kChannelSlots<V>));
        return dispatch_layout(geometry.rows.channels_last, [&](auto channels_last) {
          return launch_next(&apply_norm_relu<scalar_t, V, channels_last>, view.walk.plan.blocks,
                             view.walk.plan.threads, stream, op, view);
        });
      });
}

int64_t batch_norm_relu_backward_workspace(const BatchNormReluBackward& op) { return workspace_of<Backward>(op); }

cudaError_t batch_norm_relu_backward(const BatchNormReluBackward& op, void* workspace, cudaStream_t stream) {
  Carve carve(workspace, op.dtype);
  const Backward to(op, carve);
  const Rows& rows = to.geometry.rows;
  const bool over_batch = op.norm.kind == NormKind::kBatch;
  return dispatch(
      op.dtype,
      [&](int V) { return aligned(op.x, op.grad, op.dx, op.grad_shortcut) && to.geometry.vectors_fit(op, V); },
      [&](auto scalar, auto V) {
        using scalar_t = decltype(scalar);
        using acc_t = Accumulator<scalar_t>;
        acc_t *partials = static_cast<acc_t*>(to.partials), *means = static_cast<acc_t*>(to.means);
        return dispatch_layout(rows.channels_last, [&](auto channels_last) {
          const bool sums = op.dweight != nullptr || op.dbias != nullptr || (op.dx != nullptr && over_batch);
          if (sums) {
            const ChannelPlan plan = plan_channel_sums(rows, V);
            DRSN_CUDA_TRY(launch(&norm_relu_sums<scalar_t, V, channels_last>, plan.blocks, plan.threads, stream, op,
                                 View<acc_t>(op, to.geometry, V, plan), partials));
            DRSN_CUDA_TRY(launch_next(
                &fold_channel_sums<acc_t>, rows.channels, kThreads, stream, rows, plan.pieces,
                static_cast<const acc_t*>(partials),
                InputGradients<acc_t>{static_cast<acc_t*>(op.dweight), static_cast<acc_t*>(op.dbias), means}));
          }
          if (op.dx == nullptr) return cudaSuccess;
          const ChannelPlan plan = plan_channels(rows, V, kChannelSlots<V>);
          return launch(&norm_relu_backward<scalar_t, V, channels_last>, plan.blocks, plan.threads,
                        Stream(stream, sums), op, View<acc_t>(op, to.geometry, V, plan),
                        over_batch ? static_cast<const acc_t*>(means) : nullptr);
        });
      });
}

}  // namespace drsn::cuda
