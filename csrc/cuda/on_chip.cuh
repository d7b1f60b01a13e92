// Rows of x, or of a gradient, that the threads of an on-chip kernel hold in registers.
#pragma once

#include "cuda/block_sums.cuh"
#include "cuda/indexing.cuh"
#include "cuda/mask.cuh"
#include "cuda/plan.h"
#include "cuda/vectors.cuh"

namespace drsn::cuda {

constexpr int kResidualsInFlight = 4;  // vectors of a thread
constexpr int kMasksInFlight = 4;      // a thread's vectors whose mask is loaded together

// The row of a thread, or its rows in channels_last, kRows from c, and the thread's place in their line.
template <bool channels_last, int V>
struct OnChipPlace {
  static constexpr int kRows = channels_last ? V : 1;
  int step;  // elements between a thread's vectors
  int position;
  int64_t row, line, n, c;  // row: the first
  bool exists, first;

  __device__ __forceinline__ OnChipPlace(const OnChip& plan, const Rows& rows, const Divisor& channels) {
    if constexpr (channels_last) {
      line = n = blockIdx.x / unsigned(plan.tiles);
      c = (int64_t(blockIdx.x % unsigned(plan.tiles)) * plan.columns + threadIdx.x % plan.columns) * V;
      const int level = threadIdx.x / plan.columns;
      exists = level < plan.depth && c < rows.channels;
      first = exists && level == 0;
      row = n * rows.channels + c;
      step = plan.depth * int(rows.channels);
      position = level * int(rows.channels) + int(c);
    } else {
      const int local = threadIdx.x >> plan.lane_bits;
      const int lane = threadIdx.x & ((1 << plan.lane_bits) - 1);
      line = row = int64_t(blockIdx.x) * plan.rows + local;
      exists = local < plan.rows && row < rows.samples * rows.channels;
      first = exists && lane == 0;
      n = channels.divide(row);
      c = row - n * channels.value;
      step = V << plan.lane_bits;
      position = lane * V;
    }
  }

  // Sums over the threads of the same rows.
  template <class acc_t>
  __device__ __forceinline__ void sum(const OnChip& plan, acc_t (&sums)[kRows]) const {
    if constexpr (channels_last) {
      column_sum<kOnChipThreads>(sums, plan.columns, plan.depth, threadIdx.x / plan.columns, threadIdx.x % plan.columns,
                                 exists);
    } else {
      sums[0] = lane_sum(sums[0], 1 << plan.lane_bits);
    }
  }
};

// Loads the thread's vectors of its line, `x`. Every loop over slots has the same bound for the whole block.
template <class scalar_t, int V, class Place>
__device__ __forceinline__ void hold(Packed<scalar_t, V> (&held)[kOnChipSlots<V>], const Place& at, int length,
                                     const scalar_t* x) {
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
    const int position = at.position + i * at.step;
    held[i] = load_if<V>(at.exists && position < length, x + unsigned(position));
  }
}

// Prefetches a line that the thread will read after a sum over the held one.
template <int V, class Place, class scalar_t>
__device__ __forceinline__ void prefetch_line(const Place& at, int length, const scalar_t* x) {
  if (x == nullptr || !at.exists) return;
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
    const int position = at.position + i * at.step;
    if (position < length) prefetch(x + at.line * length + unsigned(position));
  }
}

// Adds |x| to the sums of the thread's rows.
template <class scalar_t, int V, class Place>
__device__ __forceinline__ void add_abs(Accumulator<scalar_t> (&sums)[Place::kRows],
                                        Packed<scalar_t, V> (&held)[kOnChipSlots<V>], const Place& at, int length) {
  using acc_t = Accumulator<scalar_t>;
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
    const Vector<acc_t, V> mine = unpack_wide(held[i]);
#pragma unroll
    for (int j = 0; j < V; ++j) sums[j % Place::kRows] += magnitude_of(mine.value[j]);
  }
}

// Soft-thresholds what is held into y and, where they are not null, adds the residual and writes the mask.
template <class scalar_t, int V, class Place>
__device__ __forceinline__ void shrink_held(const Packed<scalar_t, V> (&held)[kOnChipSlots<V>], const Place& at,
                                            int length, const Accumulator<scalar_t> (&tau)[Place::kRows],
                                            const void* residual_data, void* y_data, uint8_t* mask_data) {
  constexpr int kSlots = kOnChipSlots<V>;
  const int64_t start = fixed(at.line * length + at.position);
  const scalar_t* residual = static_cast<const scalar_t*>(residual_data) + start;
  scalar_t* y = static_cast<scalar_t*>(y_data) + start;
  const int plane_bytes = int(mask_bytes(length));
  uint8_t* mask = mask_data + fixed(at.line * kShrinkPlanes * plane_bytes);
#pragma unroll
  for (int begin = 0; begin < kSlots; begin += kResidualsInFlight) {
    if (begin * at.step >= length) break;
    Packed<scalar_t, V> residuals[kResidualsInFlight];
#pragma unroll
    for (int i = 0; i < kResidualsInFlight; ++i) {
      const int ahead = (begin + i) * at.step;
      residuals[i] =
          load_if<V>(residual_data != nullptr && at.exists && at.position + ahead < length, residual + unsigned(ahead));
    }
#pragma unroll
    for (int i = 0; i < kResidualsInFlight; ++i) {
      if ((begin + i) * at.step >= length) break;
      const int position = at.position + (begin + i) * at.step;
      const bool inside = at.exists && position < length;
      unsigned word;
      const Vector<scalar_t, V> result =
          shrink(held[begin + i], residuals[i], [&](int j) { return tau[j % Place::kRows]; }, word);
      store<V>(inside, y + unsigned((begin + i) * at.step), result);
      if (mask_data != nullptr) store_mask<V>(inside, mask, plane_bytes, kShrinkPlanes, unsigned(position), word);
    }
  }
}

// Loads the thread's vectors of a line of a gradient, `grad`, and of its segment of the mask.
template <class scalar_t, int V, class Place>
__device__ __forceinline__ void hold_gradient(Packed<scalar_t, V> (&held)[kOnChipSlots<V>],
                                              unsigned (&word)[kOnChipSlots<V>], const Place& at, int length,
                                              const scalar_t* grad, const uint8_t* mask) {
  const int64_t segment = at.line * kShrinkPlanes * mask_bytes(length);
  const int plane_bytes = int(mask_bytes(length));
  hold(held, at, length, grad);
#pragma unroll
  for (int begin = 0; begin < kOnChipSlots<V>; begin += kMasksInFlight) {
    if (begin * at.step >= length) break;
    MaskBytes<kShrinkPlanes> bytes[kMasksInFlight];
#pragma unroll
    for (int i = 0; i < kMasksInFlight; ++i) {
      const int position = at.position + (begin + i) * at.step;
      bytes[i] =
          load_mask<kShrinkPlanes>(at.exists && position < length, mask, segment, plane_bytes, unsigned(position));
    }
#pragma unroll
    for (int i = 0; i < kMasksInFlight; ++i) word[begin + i] = bytes[i].word(at.position + (begin + i) * at.step);
  }
}

// Adds active * sign * g to the sums of the thread's rows.
template <class scalar_t, int V, class Place>
__device__ __forceinline__ void add_active(Accumulator<scalar_t> (&sums)[Place::kRows],
                                           const Packed<scalar_t, V> (&held)[kOnChipSlots<V>],
                                           const unsigned (&word)[kOnChipSlots<V>], const Place& at, int length) {
  using acc_t = Accumulator<scalar_t>;
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
    const Vector<acc_t, V> mine = unpack_wide(held[i]);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const acc_t g = mine.value[j];
      const acc_t along = test(word[i], kNegative, j) ? -g : g;
      sums[j % Place::kRows] += test(word[i], kActive, j) ? along : acc_t(0);
    }
  }
}

// Writes the thread's vectors of a line of dx; the thread exists. Each element receives its row's share along its sign.
template <class scalar_t, int V, class Place>
__device__ __forceinline__ void combine_held(const Packed<scalar_t, V> (&held)[kOnChipSlots<V>],
                                             const unsigned (&word)[kOnChipSlots<V>], const Place& at, int length,
                                             const Accumulator<scalar_t> (&share)[Place::kRows], scalar_t* dx) {
  using acc_t = Accumulator<scalar_t>;
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
    const int position = at.position + i * at.step;
    const Vector<acc_t, V> mine = unpack_wide(held[i]);
    Vector<scalar_t, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      result.value[j] =
          narrow<scalar_t>(drsn::combine(test(word[i], kNegative, j), test(word[i], kNonzero, j),
                                         test(word[i], kActive, j), mine.value[j], share[j % Place::kRows]));
    }
    store<V>(position < length, dx + unsigned(position), result);
  }
}

}  // namespace drsn::cuda
