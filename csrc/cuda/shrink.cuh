// What every kernel shares that keeps rows of x, or of a gradient, in registers; and the elementwise half of shrink.
#pragma once

#include "cuda/common.cuh"

namespace drsn::cuda {

constexpr int kResidualBatch = 4;  // residual loads in flight a thread
constexpr int kMaskBatch = 4;      // vectors whose mask is in flight

// The row of this thread of an on-chip kernel, and the thread's place in it.
struct OnChipPlace {
  int step;  // elements between a thread's vectors
  int position;
  int64_t row, n, c;
  bool exists, first;

  __device__ __forceinline__ OnChipPlace(const OnChip& plan, const Rows& rows, const Divisor& channels, int V) {
    const int local = threadIdx.x >> plan.lane_bits;
    const int lane = threadIdx.x & ((1 << plan.lane_bits) - 1);
    step = V << plan.lane_bits;
    position = lane * V;
    row = int64_t(blockIdx.x) * plan.rows + local;
    exists = local < plan.rows && row < rows.samples * rows.channels;
    first = exists && lane == 0;
    n = channels.divide(row);
    c = row - n * channels.value;
  }
};

// The bound of the loops over slots is the same for the whole block. `x` is the thread's row.
template <class scalar_t, int V>
__device__ __forceinline__ void hold(Packed<scalar_t, V> (&held)[kOnChipSlots<V>], const OnChipPlace& at, int length,
                                     const scalar_t* x) {
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
    const int position = at.position + i * at.step;
    held[i] = load_if<V>(at.exists && position < length, x + unsigned(position));
  }
}

template <class scalar_t, int V>
__device__ __forceinline__ Accumulator<scalar_t> held_abs_sum(Packed<scalar_t, V> (&held)[kOnChipSlots<V>],
                                                              const OnChipPlace& at, int length) {
  using acc_t = Accumulator<scalar_t>;
  acc_t sum = 0;
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
    const Vector<scalar_t, V> mine = unpack(held[i]);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const acc_t v = widen(mine.value[j]);
      sum += magnitude_of(v);
    }
  }
  return sum;
}

// Soft-thresholds what is held into the thread's row of y; residual and mask may be null.
template <class scalar_t, int V>
__device__ __forceinline__ void shrink_held(const Packed<scalar_t, V> (&held)[kOnChipSlots<V>], const OnChipPlace& at,
                                            int length, Accumulator<scalar_t> tau, const void* residual_data,
                                            void* y_data, uint8_t* mask_data) {
  using acc_t = Accumulator<scalar_t>;
  constexpr int kSlots = kOnChipSlots<V>;
  const int64_t start = fixed(at.row * length + at.position);
  const scalar_t* residual = static_cast<const scalar_t*>(residual_data) + start;
  scalar_t* y = static_cast<scalar_t*>(y_data) + start;
  const int plane_bytes = int(mask_bytes(length));
  uint8_t* mask = mask_data + fixed(at.row * kShrinkPlanes * plane_bytes);
#pragma unroll
  for (int batch = 0; batch < kSlots; batch += kResidualBatch) {
    if (batch * at.step >= length) break;
    Packed<scalar_t, V> added[kResidualBatch];
#pragma unroll
    for (int i = 0; i < kResidualBatch; ++i) {
      const int ahead = (batch + i) * at.step;
      added[i] =
          load_if<V>(residual_data != nullptr && at.exists && at.position + ahead < length, residual + unsigned(ahead));
    }
#pragma unroll
    for (int i = 0; i < kResidualBatch; ++i) {
      if ((batch + i) * at.step >= length) break;
      const int position = at.position + (batch + i) * at.step;
      const bool inside = at.exists && position < length;
      const Vector<scalar_t, V> mine = unpack(held[batch + i]);
      const Vector<scalar_t, V> plus = unpack(added[i]);
      Vector<scalar_t, V> result;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const acc_t v = widen(mine.value[j]);
        result.value[j] = narrow<scalar_t>(drsn::soft_threshold(v, tau) + acc_t(widen(plus.value[j])));
      }
      if (inside) store<V>(V, y + unsigned((batch + i) * at.step), result);
      if (mask_data != nullptr) {
        unsigned word = 0;
#pragma unroll
        for (int j = 0; j < V; ++j) word |= spread(element_mask(acc_t(widen(mine.value[j])), tau), j);
        store_mask<V>(inside, mask, plane_bytes, kShrinkPlanes, unsigned(position), word);
      }
    }
  }
}

// The same for a row of a gradient, `grad`, and its part of the whole mask.
template <class scalar_t, int V>
__device__ __forceinline__ void hold_gradient(Packed<scalar_t, V> (&held)[kOnChipSlots<V>],
                                              unsigned (&word)[kOnChipSlots<V>], const OnChipPlace& at, int length,
                                              const scalar_t* grad, const uint8_t* mask) {
  const int64_t segment = at.row * kShrinkPlanes * mask_bytes(length);
  const int plane_bytes = int(mask_bytes(length));
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
    const int position = at.position + i * at.step;
    held[i] = load_if<V>(at.exists && position < length, grad + unsigned(position));
  }
#pragma unroll
  for (int batch = 0; batch < kOnChipSlots<V>; batch += kMaskBatch) {
    if (batch * at.step >= length) break;
    MaskBytes bytes[kMaskBatch];
#pragma unroll
    for (int i = 0; i < kMaskBatch; ++i) {
      const int position = at.position + (batch + i) * at.step;
      bytes[i] =
          load_mask(at.exists && position < length, mask, segment, plane_bytes, kShrinkPlanes, unsigned(position));
    }
#pragma unroll
    for (int i = 0; i < kMaskBatch; ++i) word[batch + i] = bytes[i].word(at.position + (batch + i) * at.step);
  }
}

template <class scalar_t, int V>
__device__ __forceinline__ Accumulator<scalar_t> held_active_sum(Packed<scalar_t, V> (&held)[kOnChipSlots<V>],
                                                                 const unsigned (&word)[kOnChipSlots<V>],
                                                                 const OnChipPlace& at, int length) {
  using acc_t = Accumulator<scalar_t>;
  acc_t sum = 0;
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
    const Vector<scalar_t, V> mine = unpack(held[i]);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const acc_t g = widen(mine.value[j]);
      const acc_t along = test(word[i], kNegative, j) ? -g : g;
      sum += test(word[i], kActive, j) ? along : acc_t(0);
    }
  }
  return sum;
}

// dx of the thread's row, which exists: `share` is what each element receives along its sign.
template <class scalar_t, int V>
__device__ __forceinline__ void combine_held(const Packed<scalar_t, V> (&held)[kOnChipSlots<V>],
                                             const unsigned (&word)[kOnChipSlots<V>], const OnChipPlace& at, int length,
                                             Accumulator<scalar_t> share, scalar_t* dx) {
  using acc_t = Accumulator<scalar_t>;
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
    const int position = at.position + i * at.step;
    const Vector<scalar_t, V> mine = unpack(held[i]);
    Vector<scalar_t, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      result.value[j] = narrow<scalar_t>(drsn::combine(test(word[i], kNegative, j), test(word[i], kNonzero, j),
                                                       test(word[i], kActive, j), acc_t(widen(mine.value[j])), share));
    }
    if (position < length) store<V>(V, dx + unsigned(position), result);
  }
}

// y from x and the means, which are there already.
cudaError_t shrink_from_means(const Shrink& op, cudaStream_t stream);

}  // namespace drsn::cuda
