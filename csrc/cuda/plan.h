// Which kernel, and in what shape: the one place that decides, from sizes alone. V is the number of elements a thread
// moves at once: 16 bytes, or 1 where a pointer or a length forbids it.
//
//   sums, reduced axis innermost    reduce_rows     1 to 256 threads a row, or a block a chunk
//   sums, kept axis innermost       reduce_columns  a thread a column of V elements, threads below one another added up
//   shrink, contiguous, fits        on chip         1 to 512 threads a row, which stays in their registers; where
//                                                   per_sample, a block a sample
//   shrink, the rest                sums, then an elementwise kernel that reads x again, last part first
//   everything else                 elementwise     V elements a thread and step, in memory order
//   gate                            tiles           32 samples x 32 features or outputs a block (gate.cu)
//   gated shrink, contiguous, fits  on chip         a block a sample, its gate in the same block; not where the gate's
//                                                   norm is kBatch, and not where reading the weights again for every
//                                                   sample would cost more than reading x again
//   gated shrink, the rest          sums, gate, elementwise
//   batch_norm_shrink               statistics of rows held on chip, sums, gate, elementwise
//
// How sums are chunked depends on sizes only, never on the device, so that results do not either.
#pragma once

#include <algorithm>
#include <cstdint>

#include "params.h"

namespace drsn::cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;        // a block of the reductions and of the elementwise kernels
constexpr int kOnChipThreads = 512;  // the largest block of the on-chip kernels
constexpr int64_t kMaxBlocks = 0x7fffffff;

// Vectors of a row that one thread of an on-chip kernel holds.
constexpr int on_chip_slots(int V) { return V == 1 ? 16 : 8; }
template <int V>
constexpr int kOnChipSlots = on_chip_slots(V);

// Vectors of an elementwise kernel's thread: a block takes kThreads times as many.
constexpr int elementwise_slots(int V) { return V == 1 ? 4 : 2; }
template <int V>
constexpr int kElementwiseSlots = elementwise_slots(V);

constexpr int kRowsThreadVectors = 16;  // of a row of reduce_rows that has more than a warp and less than a block

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int power_of_two_at_least(int64_t n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// Threads for a row of `vectors` vectors: neighbours read neighbouring vectors, two of which fill a sector of memory.
// Inside a warp about eight vectors a thread, which are in flight together and share the work done once a row, beyond
// it `slots`; never fewer threads than share a byte of mask.
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

// An on-chip launch: `rows` rows of `lanes` threads a block.
struct OnChip {
  bool fits;
  int lane_bits;  // lanes = 1 << lane_bits
  int rows, threads;
  int64_t blocks;
};

inline OnChip plan_on_chip(const Rows& rows, bool per_sample, int V) {
  OnChip plan{};
  const int slots = on_chip_slots(V);
  const int64_t vectors = ceil_div(rows.length, V);
  int64_t lanes = row_lanes(vectors, V, slots);
  if (per_sample) {
    while (lanes * rows.channels > kOnChipThreads && lanes > 8 / V && vectors <= lanes / 2 * slots) lanes /= 2;
  }
  const int64_t block_rows = per_sample ? rows.channels : std::max<int64_t>(1, 128 / lanes);
  plan.blocks = per_sample ? rows.samples : ceil_div(rows.samples * rows.channels, block_rows);
  plan.fits = !rows.channels_last && vectors <= lanes * slots && block_rows <= kOnChipThreads &&
              lanes * block_rows <= kOnChipThreads && plan.blocks <= kMaxBlocks;
  if (!plan.fits) return plan;
  while (int64_t(1) << plan.lane_bits < lanes) ++plan.lane_bits;
  plan.rows = int(block_rows);
  plan.threads = int(ceil_div(lanes * block_rows, kWarp) * kWarp);
  return plan;
}

constexpr int kOnChipHidden = 1024;  // hidden features of a gate that shares a block with a sample

// A gate and its sample in one block.
inline OnChip plan_gated_on_chip(const Rows& rows, const Gate& gate, int V) {
  OnChip plan = plan_on_chip(rows, true, V);
  const int64_t weights = gate.hidden * (rows.channels + gate.outputs);
  plan.fits = plan.fits && gate.norm.kind != NormKind::kBatch && gate.hidden <= kOnChipHidden &&
              weights <= std::max<int64_t>(2 * rows.channels * rows.length, 16384);
  return plan;
}

constexpr int64_t kPieceLength = 4096;  // elements of a row of batch_norm_shrink whose statistics are made at once

constexpr int kTile = 32;               // a block of a gate's kernels: kTile x kTile sums, in steps of kTile terms
constexpr int kMaxGateParts = 64;       // of the batch, whose sums the next kernel adds up
constexpr int64_t kMaxGateSplits = 64;  // of the sums over samples that make gradients of the weights

// The batch in parts of whole tiles.
struct GateParts {
  int64_t tiles;  // of samples, in a part
  int64_t parts;
  explicit GateParts(int64_t samples)
      : tiles(ceil_div(ceil_div(samples, kTile), kMaxGateParts)), parts(ceil_div(samples, tiles * kTile)) {}
};

// A gradient of the weights is a sum over samples: where they are many and the gate's `tiles` few, in splits of whole
// tiles, then added up.
struct GateSplits {
  int64_t samples;  // of a split
  int64_t splits;
  GateSplits(int64_t all, int64_t tiles) {
    const int64_t wanted = std::max<int64_t>(1, std::min({kMaxGateSplits, all / 256, 512 / tiles}));
    samples = ceil_div(ceil_div(all, wanted), kTile) * kTile;
    splits = ceil_div(all, samples);
  }
};

// A sum over the axes of `over` with stride 0, in two steps. The first sums along one axis, the repeated one furthest
// in, and sees memory as (outer, reduced, inner); it splits a long axis into `chunks`. It leaves (outer, chunks, inner)
// partial sums, which the second step, a fold, adds up, unless they are the result already.
struct Reduction {
  Broadcast over;
  int axis;  // -1: nothing repeats
  int64_t outer = 1, reduced = 1, inner = 1;
  int64_t chunk, chunks;
  bool direct = true;  // the first step writes the result

  explicit Reduction(const Broadcast& broadcast) : over(broadcast), axis(broadcast.axes - 1) {
    for (; axis >= 0 && over.stride[axis] != 0; --axis) inner *= over.size[axis];
    if (axis >= 0) reduced = over.size[axis];
    for (int i = 0; i < axis; ++i) {
      outer *= over.size[i];
      if (over.stride[i] == 0) direct = false;
    }
    // Some thousand blocks fill a device; a part smaller than a few thousand elements is not worth a block.
    int64_t parts, step;
    if (inner == 1) {
      parts = std::min(ceil_div(1024, std::max<int64_t>(outer, 1)), reduced / 4096);
      step = kThreads * 8;  // whole bytes of mask, and whole steps of a block
    } else {
      parts =
          std::min<int64_t>(1024, outer * reduced * inner / 8192) / std::max<int64_t>(1, outer * ceil_div(inner, 1024));
      step = 1;
    }
    chunk = ceil_div(std::max<int64_t>(1, ceil_div(reduced, std::max<int64_t>(1, parts))), step) * step;
    chunks = std::max<int64_t>(1, ceil_div(reduced, chunk));
    if (chunks > 1) direct = false;
  }

  int64_t partials() const { return direct ? 0 : outer * chunks * inner; }
  int64_t entries() const { return count(true); }
  int64_t terms() const { return count(false); }  // partial sums of an entry

  int64_t size_of_partials(int i) const { return i == axis ? chunks : over.size[i]; }

  // The fold itself splits an entry of very many terms, again in two steps.
  int64_t splits() const {
    return direct || terms() <= 16384 ? 1 : std::min(ceil_div(1024, std::max<int64_t>(1, entries())), terms() / 4096);
  }
  int64_t workspace_elements() const { return partials() + (splits() > 1 ? entries() * splits() : 0); }

 private:
  int64_t count(bool kept) const {
    int64_t n = 1;
    for (int i = 0; i < over.axes; ++i) {
      if ((over.stride[i] != 0) == kept) n *= size_of_partials(i);
    }
    return n;
  }
};

// The shape of the first step's launch.
struct ReduceShape {
  int64_t outer, reduced, inner, chunk, chunks;
  int lane_bits;             // reduce_rows: 1 << lane_bits threads a row
  int columns, rows, units;  // reduce_columns: a block is `units` outer indices of `rows` rows of `columns` threads
  int64_t tiles;             // blocks across `inner`
  int threads;
  int64_t blocks;
};

inline ReduceShape plan_reduce(const Reduction& r, int V) {
  ReduceShape s{};
  s.outer = r.outer, s.reduced = r.reduced, s.inner = r.inner, s.chunk = r.chunk, s.chunks = r.chunks;
  if (r.inner == 1) {
    const int64_t vectors = ceil_div(r.reduced, V);
    const int64_t lanes =
        r.chunks > 1 ? kThreads : std::min<int64_t>(kThreads, row_lanes(vectors, V, kRowsThreadVectors));
    while (int64_t(1) << s.lane_bits < lanes) ++s.lane_bits;
    s.threads = kThreads;
    s.blocks = ceil_div(r.outer * r.chunks, kThreads >> s.lane_bits);
  } else {
    const int64_t vectors = ceil_div(r.inner, V);
    s.tiles = ceil_div(vectors, kThreads);
    s.columns = int(s.tiles == 1 ? vectors : ceil_div(ceil_div(vectors, s.tiles), 8) * 8);
    s.tiles = ceil_div(vectors, s.columns);
    s.rows = int(std::min<int64_t>(kThreads / s.columns, r.chunk));
    s.units = s.tiles == 1 ? kThreads / (s.columns * s.rows) : 1;
    s.threads = int(ceil_div(int64_t(s.columns) * s.rows * s.units, kWarp) * kWarp);
    s.blocks = ceil_div(r.outer, s.units) * s.chunks * s.tiles;
  }
  return s;
}

// The rows of x as a Broadcast of one number a row, or a sample where per_sample.
inline Broadcast row_axes(const Rows& rows, bool per_sample) {
  const int64_t sample_stride = per_sample ? 1 : rows.channels;
  const int64_t channel_stride = per_sample ? 0 : 1;
  if (rows.channels_last) {
    return {3, {rows.samples, rows.length, rows.channels}, {sample_stride, 0, channel_stride}};
  }
  return {3, {rows.samples, rows.channels, rows.length}, {sample_stride, channel_stride, 0}};
}

// Whole samples, whatever their layout.
inline Broadcast sample_axes(const Rows& rows) { return {2, {rows.samples, rows.channels * rows.length}, {1, 0}}; }

}  // namespace drsn::cuda
