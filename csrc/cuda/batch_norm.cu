// The statistics of a BatchNorm's channels, from pieces that threads hold in registers.
#include "cuda/batch_norm.cuh"

namespace drsn::cuda {
namespace {

// The mean of each piece, and the sum of the squared distances from it: nothing cancels. All are numbers less the
// channel's first one, which comes last: a large mean costs no precision.
template <class scalar_t, int V, bool channels_last>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    piece_statistics(const scalar_t* z, const __grid_constant__ ChannelWalk walk, Accumulator<scalar_t>* statistics) {
  wait_for_previous();
  using acc_t = Accumulator<scalar_t>;
  using Place = ChannelPlace<channels_last, V>;
  constexpr int kChannels = Place::kChannels;
  Place at(walk, blockIdx.x);
  Packed<scalar_t, V> held[kOnChipSlots<V>];
  acc_t first[kChannels], means[kChannels] = {}, squares[kChannels] = {};
  const Packed<scalar_t, kChannels> start = load_if<kChannels>(at.exists, z + at.first_element(walk));
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    held[i] = load_if<V>(at.inside(i), z + at.element);
    at.advance(walk);
  }
#pragma unroll
  for (int j = 0; j < kChannels; ++j) first[j] = unpack_wide(start).value[j];
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (!at.inside(i)) break;
    const Vector<acc_t, V> mine = unpack_wide(held[i]);
#pragma unroll
    for (int j = 0; j < V; ++j) means[j % kChannels] += mine.value[j] - first[j % kChannels];
  }
  at.sum(means);
  const acc_t count = acc_t(at.in_piece * Place::kLength);
#pragma unroll
  for (int j = 0; j < kChannels; ++j) means[j] /= count;
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (!at.inside(i)) break;
    const Vector<acc_t, V> mine = unpack_wide(held[i]);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const int k = j % kChannels;
      const acc_t distance = mine.value[j] - first[k] - means[k];
      squares[k] += distance * distance;
    }
  }
  at.sum(squares);
  if (!at.first()) return;
#pragma unroll
  for (int j = 0; j < kChannels; ++j) {
    statistics[at.partial(walk, j)] = means[j];
    statistics[at.partial(walk, walk.channels + j)] = squares[j];
    if (at.piece == 0) statistics[2 * walk.channels * walk.plan.pieces + at.c + j] = first[j];
  }
}

// mean and rstd of each channel, a block per channel: from its pieces, or the running statistics. A piece has
// `piece_length` elements, the last one fewer.
template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    channel_statistics(const __grid_constant__ Norm norm, const __grid_constant__ Rows rows, int64_t pieces,
                       int64_t piece_length, const acc_t* statistics, acc_t* input_state) {
  wait_for_previous();
  const int64_t c = blockIdx.x;
  NormNumbers<acc_t> numbers;
  if (norm.kind == NormKind::kRunning) {
    numbers = running_numbers<acc_t>(norm, c);
  } else {
    const acc_t* means_of = statistics + c * pieces;
    const acc_t* squares_of = statistics + (rows.channels + c) * pieces;
    const int64_t elements = rows.samples * rows.length;
    const auto length = [&](int64_t i) { return acc_t(min(piece_length, elements - i * piece_length)); };
    acc_t sum = 0, squares = 0;
    for (int64_t i = threadIdx.x; i < pieces; i += kThreads) sum += length(i) * means_of[i];
    const acc_t mean = block_sum(sum) / acc_t(elements);
    for (int64_t i = threadIdx.x; i < pieces; i += kThreads) {
      const acc_t distance = means_of[i] - mean;
      squares += squares_of[i] + length(i) * (distance * distance);
    }
    squares = block_sum(squares);
    numbers = {statistics[2 * rows.channels * pieces + c] + mean, rstd_of(squares / acc_t(elements), norm.eps), 0, 0};
    if (threadIdx.x == 0) update_running(norm, c, numbers.mean, squares, acc_t(elements));
  }
  if (threadIdx.x > 0) return;
  input_state[c] = numbers.mean;
  input_state[rows.channels + c] = numbers.rstd;
}

ChannelPlan statistics_plan(const Rows& rows, int V) { return plan_channels(rows, V, on_chip_slots(V)); }

}  // namespace

int64_t input_statistics_workspace(const Norm& norm, const Rows& rows) {
  if (norm.kind != NormKind::kBatch) return 0;
  return 2 * channel_partials(rows_side_by_side(rows), statistics_plan) + rows.channels;
}

cudaError_t input_statistics(DType dtype, const Norm& norm, const Rows& rows_of_z, const void* z, void* input_state,
                             void* workspace, cudaStream_t stream) {
  const Rows rows = rows_side_by_side(rows_of_z);
  return dispatch(
      dtype, [&](int V) { return aligned(z) && channel_vectors_fit(rows, V); },
      [&](auto scalar, auto V) {
        using scalar_t = decltype(scalar);
        using acc_t = Accumulator<scalar_t>;
        const ChannelPlan plan = statistics_plan(rows, V);
        acc_t* statistics = static_cast<acc_t*>(workspace);
        if (norm.kind == NormKind::kBatch) {
          DRSN_CUDA_TRY(dispatch_layout(rows.channels_last, [&](auto channels_last) {
            return launch(&piece_statistics<scalar_t, V, channels_last>, plan.blocks, plan.threads, stream,
                          static_cast<const scalar_t*>(z), ChannelWalk(rows, V, plan), statistics);
          }));
        }
        return launch(&channel_statistics<acc_t>, rows.channels, kThreads,
                      Stream(stream, norm.kind == NormKind::kBatch), norm, rows, plan.pieces,
                      rows.channels_last ? plan.piece : plan.piece * V, static_cast<const acc_t*>(statistics),
                      static_cast<acc_t*>(input_state));
      });
}

}  // namespace drsn::cuda
