// x = norm(z) with a BatchNorm: the statistics of z's channels, x of an element, the gradients of weight and bias; and
// launches whose threads keep to their channels, so that what they need of a channel is loaded once.
#pragma once

#include "cuda/gate_math.cuh"
#include "cuda/indexing.cuh"
#include "cuda/launch.cuh"

namespace drsn::cuda {

// The values of N channels from c, or `otherwise` where data is null; data is aligned to 16 bytes where N > 1.
template <int N, class acc_t>
__device__ __forceinline__ void channel_values(acc_t (&out)[N], const acc_t* data, int64_t c, double otherwise) {
  constexpr int kOnce = N == 1 ? 1 : 16 / sizeof(acc_t);
#pragma unroll
  for (int i = 0; i < N; i += kOnce) {
    Vector<acc_t, kOnce> values;
#pragma unroll
    for (int j = 0; j < kOnce; ++j) values.value[j] = acc_t(otherwise);
    if (data != nullptr) values = *reinterpret_cast<const Vector<acc_t, kOnce>*>(data + c + i);
#pragma unroll
    for (int j = 0; j < kOnce; ++j) out[i + j] = values.value[j];
  }
}

// Every kernel computes x the same way. The mean is subtracted first, so that a large mean costs no precision.
template <class acc_t>
struct InputNorm {
  const acc_t *mean, *rstd, *weight, *bias;  // of the channels; the last two may be null

  struct Channel {
    acc_t mean, rstd, scale, bias;
    __device__ __forceinline__ acc_t x(acc_t z) const { return fma(z - mean, scale, bias); }
    __device__ __forceinline__ acc_t xhat(acc_t z) const { return (z - mean) * rstd; }
    // The gradient of z from that of x and from the means over the channel's elements of dbias and dweight; these are 0
    // where the statistics are constants, and then an xhat that is not finite changes nothing.
    __device__ __forceinline__ acc_t gradient(acc_t dx, acc_t xhat, acc_t dbias, acc_t dweight) const {
      return scale * (dx - (dbias + (dweight == acc_t(0) ? acc_t(0) : xhat * dweight)));
    }
  };
  InputNorm(const Norm& norm, const void* input_state, int64_t channels)
      : mean(static_cast<const acc_t*>(input_state)),
        rstd(mean + channels),
        weight(static_cast<const acc_t*>(norm.weight)),
        bias(static_cast<const acc_t*>(norm.bias)) {}
  // N channels from c.
  template <int N>
  __device__ __forceinline__ void channels(int64_t c, Channel (&out)[N]) const {
    acc_t means[N], rstds[N], weights[N], biases[N];
    channel_values(means, mean, c, 0);
    channel_values(rstds, rstd, c, 1);
    channel_values(weights, weight, c, 1);
    channel_values(biases, bias, c, 0);
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] = {means[j], rstds[j], weights[j] * rstds[j], biases[j]};
  }
};

// Vectors of a thread that are in flight.
template <int V>
constexpr int kChannelSlots = V == 1 ? 8 : 4;

// The launch of a ChannelPlan over a tensor of these rows.
struct ChannelWalk {
  ChannelPlan plan;
  Divisor of_sample;  // vectors of a channel in a sample
  Divisor tiles, columns;
  int64_t channels, length;
  // From a thread's vector to its next: samples and vectors, which are elements; and elements where a sample ends.
  int64_t samples, rest, step, wrap;

  ChannelWalk(const Rows& rows, int V, const ChannelPlan& channel_plan)
      : plan(channel_plan),
        of_sample(rows.channels_last ? rows.length : rows.length / V),
        tiles(plan.tiles),
        columns(plan.columns),
        channels(rows.channels),
        length(rows.length),
        samples(plan.depth / of_sample.value),
        rest(plan.depth % of_sample.value),
        step(rows.channels_last ? plan.depth * channels : samples * channels * length + rest * V),
        wrap(rows.channels_last ? 0 : (channels - 1) * length) {}
};

// A thread's channels, kChannels from c, and its vectors, `depth` apart, at one of which it is.
template <bool channels_last, int V>
struct ChannelPlace {
  static constexpr int kChannels = channels_last ? V : 1;
  static constexpr int kLength = channels_last ? 1 : V;      // elements of a channel in a vector
  using index_t = std::conditional_t<V == 1, int64_t, int>;  // of samples, channels and positions: channel_vectors_fit
  int columns, depth, column, level, piece;
  index_t c;
  bool exists;
  int in_piece, left;        // vectors of the piece; those from the thread's first on, 0 where it does not exist
  index_t sample, position;  // of the vector; the position counts a sample's vectors
  int64_t element;           // where the vector begins

  __device__ __forceinline__ ChannelPlace(const ChannelWalk& walk, unsigned block)
      : columns(channels_last ? walk.plan.columns : 1),
        depth(walk.plan.depth),
        column(0),
        level(threadIdx.x),
        piece(walk.tiles.divide(block)) {
    if constexpr (channels_last) {
      level = walk.columns.divide(threadIdx.x);
      column = threadIdx.x - level * columns;
    }
    c = (index_t(block - piece * unsigned(walk.tiles.value)) * columns + column) * kChannels;
    exists = level < depth && c < index_t(walk.channels);
    const int64_t first = piece * walk.plan.piece;
    in_piece = int(min(walk.plan.piece, walk.plan.vectors - first));  // an int is enough: memory is not larger
    left = exists ? in_piece - level : 0;
    const int64_t quotient = walk.of_sample.divide(first + level);
    sample = index_t(quotient);
    position = index_t(first + level - quotient * walk.of_sample.value);
    element = (first + level) * walk.channels + c;
    if constexpr (!channels_last) element = (quotient * walk.channels + c) * walk.length + int64_t(position) * kLength;
  }
  // Moves on by `depth` vectors.
  __device__ __forceinline__ void advance(const ChannelWalk& walk) {
    sample += index_t(walk.samples);
    position += index_t(walk.rest);
    element += walk.step;
    if (position < index_t(walk.of_sample.value)) return;
    ++sample;
    position -= index_t(walk.of_sample.value);
    if constexpr (!channels_last) element += walk.wrap;
  }
  // Whether the thread has an i-th vector.
  __device__ __forceinline__ bool inside(int i) const { return i * depth < left; }
  __device__ __forceinline__ bool first() const { return exists && level == 0; }

  // The first element of the channels.
  __device__ __forceinline__ int64_t first_element(const ChannelWalk& walk) const {
    return channels_last ? int64_t(c) : c * walk.length;
  }
  // Where the partial sum of this piece is, of the thread's j-th channel: pieces side by side.
  __device__ __forceinline__ int64_t partial(const ChannelWalk& walk, int64_t j) const {
    return (c + j) * walk.plan.pieces + piece;
  }
  // Adds up N sums over the threads with the same channels; all of them get the results.
  template <int N, class acc_t>
  __device__ __forceinline__ void sum(acc_t (&sums)[N]) const {
    if constexpr (channels_last) {
      column_sum<kThreads>(sums, columns, depth, level, column, exists);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) sums[j] = block_sum(sums[j]);
    }
  }
};

// f(std::bool_constant<channels_last>{}).
template <class F>
cudaError_t dispatch_layout(bool channels_last, F f) {
  return channels_last ? f(std::true_type{}) : f(std::false_type{});
}

// Rows of one element lie alike in both layouts: threads that are neighbours then take neighbouring channels.
inline Rows rows_side_by_side(Rows rows) {
  rows.channels_last = rows.channels_last || rows.length == 1;
  return rows;
}

// The partial sums of one kind that launches planned by plan(rows, V) need at most.
template <class Plan>
int64_t channel_partials(const Rows& rows, Plan plan) {
  int64_t pieces = 0;
  for (int V : {1, 2, 4, 8}) pieces = std::max(pieces, plan(rows, V).pieces);
  return rows.channels * pieces;
}

// True if the threads of a ChannelPlan can move V elements at once. Their indices are ints then, and so is the sum of
// two.
inline bool channel_vectors_fit(const Rows& rows, int V) {
  return (rows.channels_last ? rows.channels : rows.length) % V == 0 &&
         std::max({rows.samples, rows.channels, rows.length}) < int64_t(1) << 30;
}

// Where the gradients of weight and bias go.
template <class acc_t>
struct InputGradients {
  acc_t *dweight, *dbias;  // of the channels; each may be null
  acc_t* means;            // dbias and dweight divided by the elements of a channel

  __device__ __forceinline__ void write(const Rows& rows, int64_t c, acc_t weight, acc_t bias) const {
    const acc_t count = acc_t(rows.samples) * acc_t(rows.length);
    means[c] = bias / count;
    means[rows.channels + c] = weight / count;
    if (dweight != nullptr) dweight[c] = weight;
    if (dbias != nullptr) dbias[c] = bias;
  }
};

// The means that InputGradients has written, of N channels; 0 where they are null.
template <int N, class acc_t>
__device__ __forceinline__ void read_means(const acc_t* means, int64_t channels, int64_t c, acc_t (&dbias)[N],
                                           acc_t (&dweight)[N]) {
  channel_values(dbias, means, c, 0);
  channel_values(dweight, means == nullptr ? nullptr : means + channels, c, 0);
}

// Accumulators of scratch memory for input_statistics.
int64_t input_statistics_workspace(const Norm& norm, const Rows& rows);

// Writes input_state, mean and rstd of each channel of z. Every block reads the counter of batches: a later kernel
// counts this batch.
cudaError_t input_statistics(DType dtype, const Norm& norm, const Rows& rows, const void* z, void* input_state,
                             void* workspace, cudaStream_t stream);

}  // namespace drsn::cuda
