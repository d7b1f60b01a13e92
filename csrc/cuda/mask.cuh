// Reads and writes the packed mask, the bits of V elements per thread.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/vectors.cuh"
#include "shrinkage_math.h"

namespace drsn::cuda {

// `word` shifted by one, and 1 in the free place where v is negative. v is an element or a difference. On a GPU this is
// one instruction, which sees the sign of -0 and of an element that is NaN too. A difference that is NaN has the sign
// 0.
__device__ __forceinline__ unsigned shift_in_sign(unsigned word, float v) {
#if defined(__CUDA_ARCH__)
  return __funnelshift_l(__float_as_uint(v), word, 1);
#else
  return word << 1 | unsigned(v < 0);
#endif
}
__device__ __forceinline__ unsigned shift_in_sign(unsigned word, double v) { return word << 1 | unsigned(v < 0); }

// v with the sign of x; v >= 0 or NaN.
__device__ __forceinline__ float with_sign_of(float x, float v) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(__float_as_uint(v) | (__float_as_uint(x) & 0x80000000u));
#else
  return x < 0 ? -v : v;
#endif
}
__device__ __forceinline__ double with_sign_of(double x, double v) { return x < 0 ? -v : v; }

// soft_threshold(x, tau(j)) + residual, and the thread's word of the mask, by element_mask: bit 8 * plane + j belongs
// to element j of its V. A 0 may have either sign.
template <class scalar_t, int V, class Tau>
__device__ __forceinline__ Vector<scalar_t, V> shrink(const Packed<scalar_t, V>& x, const Packed<scalar_t, V>& residual,
                                                      Tau tau, unsigned& word) {
  using acc_t = Accumulator<scalar_t>;
  const Vector<acc_t, V> values = unpack_wide(x), residuals = unpack_wide(residual);
  unsigned negative = 0, nonzero = 0, active = 0;
  Vector<scalar_t, V> y;
#pragma unroll
  for (int j = V - 1; j >= 0; --j) {
    const acc_t v = values.value[j], magnitude = magnitude_of(v), distance = tau(j) - magnitude;
    y.value[j] = narrow<scalar_t>(with_sign_of(v, relu(-distance)) + residuals.value[j]);
    negative = shift_in_sign(negative, v);
    nonzero = shift_in_sign(nonzero, acc_t(0) - magnitude);
    active = shift_in_sign(active, distance);
  }
  word = (negative & nonzero) << (8 * kNegative) | nonzero << (8 * kNonzero) | active << (8 * kActive);
  return y;
}
// The word of abs_mean's mask: nothing is active.
template <class acc_t, int V>
__device__ __forceinline__ unsigned signs_of(const Vector<acc_t, V>& x) {
  unsigned negative = 0, nonzero = 0;
#pragma unroll
  for (int j = V - 1; j >= 0; --j) {
    negative = shift_in_sign(negative, x.value[j]);
    nonzero = shift_in_sign(nonzero, acc_t(0) - magnitude_of(x.value[j]));
  }
  return (negative & nonzero) << (8 * kNegative) | nonzero << (8 * kNonzero);
}
__device__ __forceinline__ bool test(unsigned word, int plane, int j) { return word >> (8 * plane + j) & 1; }

// One byte of each of N planes. They become a word in a step of its own, so that a thread has all its loads in flight
// before it waits for one.
template <int N>
struct MaskBytes {
  uint8_t plane[N];

  // The word at position `pos` of the segment, a multiple of V.
  template <class index_t>
  __device__ __forceinline__ unsigned word(index_t pos) const {
    unsigned bits = 0;
#pragma unroll
    for (int p = 0; p < N; ++p) bits |= unsigned(plane[p]) << (8 * p);
    return bits >> (unsigned(pos) & 7);
  }
};

// The bytes with position `pos` of the segment that starts at byte `segment`; the planes are `apart` bytes apart, and
// those from `planes` on are 0.
template <int N, class index_t, class position_t>
__device__ __forceinline__ MaskBytes<N> load_mask(bool inside, const uint8_t* mask, int64_t segment, index_t apart,
                                                  position_t pos, int planes = N) {
  MaskBytes<N> bytes;
  const uint8_t* byte = mask + fixed(segment + int64_t(std::make_unsigned_t<position_t>(pos) / 8));
#pragma unroll
  for (int p = 0; p < N; ++p) bytes.plane[p] = inside && p < planes ? byte[p * apart] : uint8_t(0);
  return bytes;
}

// Stores the words of a warp into the segment at `segment`; every thread of the warp takes part. The 8 / V neighbours
// that share a byte combine their bits, and the first of them writes. `inside`: the thread's first element exists.
template <int V, class index_t, class position_t>
__device__ __forceinline__ void store_mask(bool inside, uint8_t* segment, index_t plane_bytes, int planes,
                                           position_t pos, unsigned word) {
  constexpr int kSharing = 8 / V;
  const int index = threadIdx.x % kSharing;
  word <<= V * index;
#pragma unroll
  for (int d = 1; d < kSharing; d *= 2) word |= __shfl_xor_sync(~0u, word, d);
  if (inside && index == 0) {
    uint8_t* byte = segment + pos / 8;
#pragma unroll
    for (int p = 0; p < kShrinkPlanes; ++p) {
      if (p < planes) byte[p * plane_bytes] = uint8_t(word >> (8 * p));
    }
  }
}

}  // namespace drsn::cuda
