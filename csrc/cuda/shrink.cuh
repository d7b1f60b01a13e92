// What every kernel shares that keeps rows of x, or of a gradient, in registers; and the elementwise half of shrink.
#pragma once

#include "cuda/common.cuh"

namespace drsn::cuda {

constexpr int kResidualBatch = 4;  // residual loads in flight a thread

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

// Makes the compiler widen the elements again after this point, where it would rather keep twice the registers.
template <class scalar_t, int V>
__device__ __forceinline__ void forget_widened(Vector<scalar_t, V>& v) {
  if constexpr (V > 1 && sizeof(scalar_t) == 2) {
    uint4 bits;
    memcpy(&bits, &v, sizeof(v));
    asm("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
    memcpy(&v, &bits, sizeof(v));
  }
}

// The bound of the loops over slots is the same for the whole block. `x` is the thread's row.
template <class scalar_t, int V>
__device__ __forceinline__ void hold(Vector<scalar_t, V> (&held)[kOnChipSlots<V>], const OnChipPlace& at, int length,
                                     const scalar_t* x) {
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
    const int position = at.position + i * at.step;
    held[i] = load_if<V>(at.exists && position < length, x + position);
  }
}

template <class scalar_t, int V>
__device__ __forceinline__ Accumulator<scalar_t> held_abs_sum(Vector<scalar_t, V> (&held)[kOnChipSlots<V>],
                                                              const OnChipPlace& at, int length) {
  using acc_t = Accumulator<scalar_t>;
  acc_t sum = 0;
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const acc_t v = widen(held[i].value[j]);
      sum += v < acc_t(0) ? -v : v;
    }
    forget_widened(held[i]);
  }
  return sum;
}

// Soft-thresholds what is held into the thread's row of y; residual and code may be null.
template <class scalar_t, int V>
__device__ __forceinline__ void shrink_held(const Vector<scalar_t, V> (&held)[kOnChipSlots<V>], const OnChipPlace& at,
                                            int length, Accumulator<scalar_t> tau, const void* residual_data,
                                            void* y_data, uint8_t* code_data) {
  using acc_t = Accumulator<scalar_t>;
  constexpr int kSlots = kOnChipSlots<V>;
  const int64_t start = at.row * length + at.position;
  const scalar_t* residual = static_cast<const scalar_t*>(residual_data);
  scalar_t* y = static_cast<scalar_t*>(y_data);
  const int64_t plane_bytes = code_bytes(length);
  uint8_t* code = code_data + at.row * kShrinkPlanes * plane_bytes;
#pragma unroll
  for (int batch = 0; batch < kSlots; batch += kResidualBatch) {
    if (batch * at.step >= length) break;
    Vector<scalar_t, V> added[kResidualBatch];
#pragma unroll
    for (int i = 0; i < kResidualBatch; ++i) {
      const int ahead = (batch + i) * at.step;
      added[i] = load_if<V>(residual != nullptr && at.exists && at.position + ahead < length, residual + start + ahead);
    }
#pragma unroll
    for (int i = 0; i < kResidualBatch; ++i) {
      if ((batch + i) * at.step >= length) break;
      const int position = at.position + (batch + i) * at.step;
      const bool inside = at.exists && position < length;
      unsigned word = 0;
      Vector<scalar_t, V> result;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const acc_t v = widen(held[batch + i].value[j]);
        result.value[j] = narrow<scalar_t>(drsn::soft_threshold(v, tau) + acc_t(widen(added[i].value[j])));
        word |= spread(element_code(v, tau), j);
      }
      if (inside) store<V>(V, y + start + (batch + i) * at.step, result);
      if (code_data != nullptr) store_code<V>(inside, code, plane_bytes, kShrinkPlanes, position, word);
    }
  }
}

// The same for a row of a gradient and its code: `grad` and `code` are the thread's row.
template <class scalar_t, int V>
__device__ __forceinline__ void hold_gradient(Vector<scalar_t, V> (&held)[kOnChipSlots<V>],
                                              unsigned (&word)[kOnChipSlots<V>], const OnChipPlace& at, int length,
                                              const scalar_t* grad, const uint8_t* code) {
  const int64_t plane_bytes = code_bytes(length);
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
    const int position = at.position + i * at.step;
    const bool inside = at.exists && position < length;
    held[i] = load_if<V>(inside, grad + position);
    word[i] = load_code(inside, code, plane_bytes, kShrinkPlanes, position);
  }
}

template <class scalar_t, int V>
__device__ __forceinline__ Accumulator<scalar_t> held_active_sum(Vector<scalar_t, V> (&held)[kOnChipSlots<V>],
                                                                 const unsigned (&word)[kOnChipSlots<V>],
                                                                 const OnChipPlace& at, int length) {
  using acc_t = Accumulator<scalar_t>;
  acc_t sum = 0;
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const acc_t g = widen(held[i].value[j]);
      const acc_t along = test(word[i], kNegative, j) ? -g : g;
      sum += test(word[i], kActive, j) ? along : acc_t(0);
    }
    forget_widened(held[i]);
  }
  return sum;
}

// dx of the thread's row, which exists: `share` is what each element receives along its sign.
template <class scalar_t, int V>
__device__ __forceinline__ void combine_held(const Vector<scalar_t, V> (&held)[kOnChipSlots<V>],
                                             const unsigned (&word)[kOnChipSlots<V>], const OnChipPlace& at, int length,
                                             Accumulator<scalar_t> share, scalar_t* dx) {
  using acc_t = Accumulator<scalar_t>;
#pragma unroll
  for (int i = 0; i < kOnChipSlots<V>; ++i) {
    if (i * at.step >= length) break;
    const int position = at.position + i * at.step;
    Vector<scalar_t, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      result.value[j] =
          narrow<scalar_t>(drsn::combine(test(word[i], kNegative, j), test(word[i], kNonzero, j),
                                         test(word[i], kActive, j), acc_t(widen(held[i].value[j])), acc_t(0), share));
    }
    if (position < length) store<V>(V, dx + position, result);
  }
}

// y from x and the means, which are there already.
cudaError_t shrink_from_means(const Shrink& op, cudaStream_t stream);

}  // namespace drsn::cuda
