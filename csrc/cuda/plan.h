// Which kernel a call takes and in what shape: decided here alone, from sizes, layout and alignment.
//
// V is the number of elements that a thread moves at once: 16 bytes, or 1 where a pointer or a length forbids it.
//
//   sums, reduced axis innermost    reduce_rows     1 to 256 threads per sum, or a block per piece
//   sums, another axis innermost    reduce_columns  a thread for V sums; several levels of threads share the axis
//     (rows in channels_last)
//   shrink and its backward, fits   on chip         1 to 512 threads hold a row in registers; a block per sample where
//                                                   per_sample. In channels_last a block holds a tile of a sample's
//                                                   channels
//   shrink and its backward, the    sums, then an elementwise kernel that reads x, or the gradient, again, from its end
//     rest (long rows)
//   everything else                 elementwise     V elements per thread and step, in memory order
//   gate                            tiles           32 samples x 32 features or outputs per block; both layers in one
//                                                   launch where a cluster, or a single block, makes them
//   gated shrink, contiguous, fits  on chip         a sample and its gate in a block; not where the gate's norm is
//                                                   kBatch, nor where reading the weights again for every sample would
//                                                   cost more than reading x again
//   gated shrink, the rest          sums, gate, elementwise
//   batch_norm_shrink               statistics of pieces held on chip, sums, gate, elementwise
//   batch_norm_relu                 statistics of pieces held on chip, elementwise; its backward: sums, elementwise.
//                                   Threads keep to their channels
//
// Pieces depend on sizes only, never on the device, and so do the results' bits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "params.h"

namespace drsn::cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;        // of a block of the reductions, the elementwise kernels and the gate's tiles
constexpr int kOnChipThreads = 512;  // of the largest block of the on-chip kernels
constexpr int64_t kMaxBlocks = 0x7fffffff;

// Vectors that a thread of an on-chip kernel holds.
constexpr int on_chip_slots(int V) { return V == 1 ? 16 : 8; }
template <int V>
constexpr int kOnChipSlots = on_chip_slots(V);

#ifdef DRSN_SMALL_DEVICE  // for tests: small tensors go the ways of large ones
constexpr int64_t kManyBlocks = 4;
constexpr int64_t kMostElements = 4096;
#else
constexpr int64_t kManyBlocks = 1024;                // fill a device
constexpr int64_t kMostElements = int64_t(1) << 30;  // of a launch of an elementwise kernel, which counts in 32 bits
#endif
constexpr int64_t kBusyBlocks = kManyBlocks / 2;  // give each multiprocessor some

// The most vectors of a thread of an elementwise kernel that reads so many tensors: 64 bytes in flight.
template <int V, int kTensors = 2>
constexpr int kElementwiseSlots = V == 1 ? 4 : 4 / kTensors;
// A thread has fewer where the blocks would be few.
inline int elementwise_slots(int64_t vectors, int most) {
  while (most > 1 && vectors <= (kManyBlocks - 1) * kThreads * most) most /= 2;
  return most;
}

constexpr int kReduceThreadVectors = 16;  // vectors of a thread of reduce_rows where a sum has several warps

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// True if V elements of a line can be moved at once.
inline bool vectors_fit(const Rows& rows, int V) {
  return rows.line_length() % V == 0 && (!rows.channels_last || rows.channels >= V);
}

inline int power_of_two_at_least(int64_t n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// The lanes, which are the threads of one row, for `vectors` vectors. Within a warp a thread has about eight: they are
// in flight together and share the work done once per row. Beyond a warp it has `slots`. Never fewer threads than share
// a byte of mask, nor fewer than two: their vectors fill a sector of memory.
inline int64_t row_lanes(int64_t vectors, int V, int slots) {
  int64_t lanes;
  if (vectors > int64_t(kWarp) * slots) {
    lanes = vectors > int64_t(kOnChipThreads) * slots ? 2 * kOnChipThreads
                                                      : power_of_two_at_least(ceil_div(vectors, slots));
  } else {
    lanes =
        std::min<int64_t>(kWarp, power_of_two_at_least(std::max(std::min<int64_t>(vectors, 2), ceil_div(vectors, 8))));
  }
  return std::max<int64_t>(lanes, 8 / V);
}

// More lanes, up to `most`, while the blocks of so many threads would leave multiprocessors idle.
inline int64_t spread_lanes(int64_t lanes, int64_t rows, int64_t vectors, int64_t most) {
  while (lanes < std::min(vectors, most) && ceil_div(rows, most / lanes) < kBusyBlocks) lanes *= 2;
  return lanes;
}

// An on-chip launch: `rows` rows per block, 1 << lane_bits lanes per row. In channels_last a block takes a tile of a
// sample's channels, `columns` vectors of them, with `depth` threads for each.
struct OnChip {
  bool fits;
  int lane_bits;
  int rows, columns, depth, threads;
  int64_t tiles;  // of a sample
  int64_t blocks;
};

constexpr int64_t kBlockThreads = 128;  // of a block of short rows

// Only where no byte of mask has channels of two tiles. A tile is 32 bytes wide or more, or has all channels.
inline OnChip plan_columns_on_chip(const Rows& rows, bool per_sample, int V) {
  OnChip plan{};
  if (V == 1 || rows.channels % 8 != 0 || rows.line_length() >= 1 << 27) return plan;  // positions are of type int
  const int slots = on_chip_slots(V);
  const int64_t across = rows.channels / V, narrow = std::max(8 / V, 2);
  const int64_t most = kOnChipThreads * slots / rows.length / narrow * narrow;  // columns whose vectors fit
  int64_t columns = std::min({across, std::max(most, narrow), int64_t(kOnChipThreads)});
  while (!per_sample && columns % (4 * narrow) == 0 && ceil_div(across, columns) * rows.samples < kBusyBlocks) {
    columns /= 2;
  }
  const int64_t spread = std::min(rows.length, ceil_div(kBlockThreads, columns));
  const int64_t depth = std::max(spread, ceil_div(rows.length, slots));
  plan.tiles = ceil_div(across, columns);
  plan.blocks = rows.samples * plan.tiles;
  plan.fits = columns * depth <= kOnChipThreads && plan.blocks <= kMaxBlocks && (!per_sample || plan.tiles == 1);
  if (!plan.fits) return plan;
  plan.columns = int(columns);
  plan.depth = int(depth);
  plan.threads = int(ceil_div(columns * depth, kWarp) * kWarp);
  return plan;
}

inline OnChip plan_on_chip(const Rows& rows, bool per_sample, int V) {
  if (rows.channels_last) return plan_columns_on_chip(rows, per_sample, V);
  OnChip plan{};
  const int slots = on_chip_slots(V);
  const int64_t vectors = ceil_div(rows.length, V);
  int64_t lanes = row_lanes(vectors, V, slots);
  if (per_sample) {
    while (lanes * rows.channels > kOnChipThreads && lanes > 8 / V && vectors <= lanes / 2 * slots) lanes /= 2;
  }
  if (!per_sample) lanes = spread_lanes(lanes, rows.samples * rows.channels, vectors, kBlockThreads);
  const int64_t block_rows = per_sample ? rows.channels : std::max<int64_t>(1, kBlockThreads / lanes);
  plan.blocks = per_sample ? rows.samples : ceil_div(rows.samples * rows.channels, block_rows);
  plan.fits = vectors <= lanes * slots && block_rows <= kOnChipThreads && lanes * block_rows <= kOnChipThreads &&
              plan.blocks <= kMaxBlocks;
  if (!plan.fits) return plan;
  while (int64_t(1) << plan.lane_bits < lanes) ++plan.lane_bits;
  plan.rows = int(block_rows);
  plan.threads = int(ceil_div(lanes * block_rows, kWarp) * kWarp);
  return plan;
}

constexpr int kOnChipHidden = 1024;  // the most hidden features of a gate on chip

// A sample and its gate in one block.
inline OnChip plan_gated_on_chip(const Rows& rows, const Gate& gate, int V) {
  OnChip plan = plan_on_chip(rows, true, V);
  const int64_t weights = gate.hidden * (rows.channels + gate.outputs);
  plan.fits = plan.fits && !rows.channels_last && gate.norm.kind != NormKind::kBatch && gate.hidden <= kOnChipHidden &&
              weights <= std::max<int64_t>(2 * rows.channels * rows.length, 16384);
  return plan;
}

// A launch whose threads keep to their channels. A thread moves V neighbours of a row at once, or V channels of a
// position where channels_last: V divides a row, or the channels. Blocks take pieces of a tile of channels.
struct ChannelPlan {
  int64_t vectors, piece, pieces;  // of a channel, of a piece; pieces of a channel
  int columns, depth;              // threads of a block across the channels, and along a channel
  int64_t tiles;
  int threads;
  int64_t blocks;
};

// `steps`: vectors of a thread; it has fewer where the blocks would leave multiprocessors idle.
inline ChannelPlan plan_channels(const Rows& rows, int V, int64_t steps) {
  ChannelPlan plan{};
  const int64_t across = rows.channels_last ? ceil_div(rows.channels, V) : rows.channels;
  plan.columns = rows.channels_last ? int(ceil_div(across, ceil_div(across, kWarp))) : 1;
  plan.tiles = ceil_div(across, plan.columns);
  plan.vectors = rows.samples * (rows.channels_last ? rows.length : ceil_div(rows.length, V));
  plan.depth = int(std::min<int64_t>(kThreads / plan.columns, plan.vectors));
  while (steps > 1 && plan.tiles * ceil_div(plan.vectors, plan.depth * steps) < kBusyBlocks) steps /= 2;
  plan.piece = plan.depth * steps;
  plan.pieces = ceil_div(plan.vectors, plan.piece);
  plan.threads = int(ceil_div(int64_t(plan.columns) * plan.depth, kWarp) * kWarp);
  plan.blocks = plan.tiles * plan.pieces;
  return plan;
}

// For sums over a channel: long pieces, and yet so many that a device which ends with a part of its blocks idles
// little.
inline ChannelPlan plan_channel_sums(const Rows& rows, int V) {
  const ChannelPlan single = plan_channels(rows, V, 1);
  return plan_channels(rows, V, std::max<int64_t>(8, ceil_div(single.pieces, ceil_div(4 * kManyBlocks, single.tiles))));
}

constexpr int kTile = 32;                // a block of a gate's kernels: kTile x kTile sums, in steps of kTile terms
constexpr int64_t kMaxBatchPieces = 64;  // of a sum over the batch

// Of the blocks that make both layers of a gate in one launch, with a barrier between: every device with clusters takes
// as many. More go without the barrier and with a second launch.
constexpr int64_t kMostOfCluster = 8;

// Pieces of the batch, whole tiles of samples, for the sums of a gate's norm over the batch.
struct NormPieces {
  int64_t tiles;  // of a piece
  int64_t count;
  explicit NormPieces(int64_t samples)
      : tiles(ceil_div(ceil_div(samples, kTile), kMaxBatchPieces)), count(ceil_div(samples, tiles * kTile)) {}
};

// Pieces of the batch for the gradients of a gate's weights, sums over the samples that `tiles` blocks make. There are
// several where the samples are many and the blocks few.
struct WeightPieces {
  int64_t samples;  // of a piece
  int64_t count;
  WeightPieces(int64_t all, int64_t tiles) {
    const int64_t wanted = std::max<int64_t>(1, std::min({kMaxBatchPieces, all / 256, 512 / tiles}));
    samples = ceil_div(ceil_div(all, wanted), kTile) * kTile;
    count = ceil_div(all, samples);
  }
};

constexpr int64_t kMostPieces = 8 * kManyBlocks;  // of all outer indices

// A sum over the axes of `over` with stride 0, in two steps. The first sums along the innermost of these axes and sees
// memory as (outer, reduced, inner); it cuts a long axis into pieces. The second step, the fold, adds up the (outer,
// pieces, inner) partial sums; there is none where they are the result already.
struct Reduction {
  Broadcast over;
  int axis;  // -1: nothing repeats
  int64_t outer = 1, reduced = 1, inner = 1;
  int64_t piece_length, pieces;
  bool direct = true;  // the first step writes the result

  explicit Reduction(const Broadcast& broadcast) : over(broadcast), axis(broadcast.axes - 1) {
    for (; axis >= 0 && over.stride[axis] != 0; --axis) inner *= over.size[axis];
    if (axis >= 0) reduced = over.size[axis];
    for (int i = 0; i < axis; ++i) {
      outer *= over.size[i];
      if (over.stride[i] == 0) direct = false;
    }
    // Where kManyBlocks would not be there there are more, so that the last to run are few among them; a few thousand
    // elements are worth a block.
    int64_t wanted, step;
    if (inner == 1) {
      wanted = outer >= kManyBlocks ? 1 : std::min(ceil_div(kMostPieces, std::max<int64_t>(outer, 1)), reduced / 4096);
      step = kThreads * 8;  // whole bytes of mask, whole steps of a block
    } else {
      wanted =
          std::min(kMostPieces, outer * reduced * inner / 8192) / std::max<int64_t>(1, outer * ceil_div(inner, 1024));
      step = 1;
    }
    piece_length = ceil_div(std::max<int64_t>(1, ceil_div(reduced, std::max<int64_t>(1, wanted))), step) * step;
    pieces = std::max<int64_t>(1, ceil_div(reduced, piece_length));
    if (pieces > 1) direct = false;
  }

  int64_t partials() const { return direct ? 0 : outer * pieces * inner; }
  int64_t entries() const { return count(true); }
  int64_t terms() const { return count(false); }  // partial sums of an entry

  int64_t size_of_partials(int i) const { return i == axis ? pieces : over.size[i]; }

  // The fold cuts the terms of an entry into pieces too where they are very many.
  int64_t fold_pieces() const {
    return direct || terms() <= 16384 ? 1 : std::min(ceil_div(1024, std::max<int64_t>(1, entries())), terms() / 4096);
  }
  int64_t workspace_elements() const { return partials() + (fold_pieces() > 1 ? entries() * fold_pieces() : 0); }

 private:
  int64_t count(bool kept) const {
    int64_t n = 1;
    for (int i = 0; i < over.axes; ++i) {
      if ((over.stride[i] != 0) == kept) n *= size_of_partials(i);
    }
    return n;
  }
};

// The launch of the first step.
struct ReduceShape {
  int64_t outer, reduced, inner, piece_length, pieces;
  int lane_bits;               // reduce_rows: 1 << lane_bits threads per sum
  int columns, depth, outers;  // reduce_columns: threads of a block across `inner`, along the axis, and outer indices
  int64_t tiles;               // blocks across `inner`
  int threads;
  int64_t blocks;
};

inline ReduceShape plan_reduce(const Reduction& r, int V) {
  ReduceShape s{};
  s.outer = r.outer, s.reduced = r.reduced, s.inner = r.inner, s.piece_length = r.piece_length, s.pieces = r.pieces;
  if (r.inner == 1) {
    const int64_t vectors = ceil_div(r.reduced, V);
    const int64_t one_warp_or_more = std::min<int64_t>(kThreads, row_lanes(vectors, V, kReduceThreadVectors));
    const int64_t lanes = r.pieces > 1 ? kThreads : spread_lanes(one_warp_or_more, r.outer, vectors, kThreads);
    while (int64_t(1) << s.lane_bits < lanes) ++s.lane_bits;
    s.threads = kThreads;
    s.blocks = ceil_div(r.outer * r.pieces, kThreads >> s.lane_bits);
  } else {
    const int64_t vectors = ceil_div(r.inner, V);
    s.tiles = ceil_div(vectors, kThreads);
    s.columns = int(s.tiles == 1 ? vectors : ceil_div(ceil_div(vectors, s.tiles), 8) * 8);
    s.tiles = ceil_div(vectors, s.columns);
    s.depth = int(std::min<int64_t>(kThreads / s.columns, r.piece_length));
    s.outers = s.tiles == 1 ? kThreads / (s.columns * s.depth) : 1;
    s.threads = int(ceil_div(int64_t(s.columns) * s.depth * s.outers, kWarp) * kWarp);
    s.blocks = ceil_div(r.outer, s.outers) * s.pieces * s.tiles;
  }
  return s;
}

// One number per row of x, or per sample where per_sample.
inline Broadcast row_axes(const Rows& rows, bool per_sample) {
  const int64_t sample_stride = per_sample ? 1 : rows.channels;
  const int64_t channel_stride = per_sample ? 0 : 1;
  if (rows.channels_last) {
    return {3, {rows.samples, rows.length, rows.channels}, {sample_stride, 0, channel_stride}};
  }
  return {3, {rows.samples, rows.channels, rows.length}, {sample_stride, channel_stride, 0}};
}

// One number per sample, whatever the layout.
inline Broadcast sample_axes(const Rows& rows) { return {2, {rows.samples, rows.channels * rows.length}, {1, 0}}; }

}  // namespace drsn::cuda
