// The element formulas and the format of the mask, once for every backend.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define DRSN_INLINE static __host__ __device__ __forceinline__
#else
// Internal linkage and forced inlining: a copy compiled for AVX-512 must never serve an older processor.
#define DRSN_INLINE static inline __attribute__((always_inline))
#endif

namespace drsn {

// The mask is what a backward pass keeps instead of x: a list of segments. A segment of `length` elements holds planes
// of mask_bytes(length) bytes one after another. Bit e % 8 of byte e / 8 of a plane belongs to element e; the bits past
// the end are 0.
//   soft_threshold  planes kNegative, kActive            a single segment for all of x, in memory order
//   abs_mean        planes kNegative, kNonzero           a segment per row, or per sample where x is channels_last
//   shrink          planes kNegative, kNonzero, kActive  as abs_mean
// kActive: |x| > tau. kNonzero: x > 0 or x < 0. kNegative: the sign bit of x where another plane is set, else 0.
// Only in the mask of soft_threshold, kNegative without kActive marks an open element: tau < 0 acted as 0, so that the
// gradient passes to x and none reaches tau.
constexpr int kNegative = 0;
constexpr int kNonzero = 1;
constexpr int kActive = 2;
constexpr int kSoftThresholdPlanes = 2;
constexpr int kSoftThresholdActive = 1;  // the index of kActive in the two-plane mask of soft_threshold
constexpr int kAbsMeanPlanes = 2;
constexpr int kShrinkPlanes = 3;

DRSN_INLINE int64_t mask_bytes(int64_t length) { return (length + 7) / 8; }

// max(v, 0) that keeps NaN.
template <class A>
DRSN_INLINE A relu(A v) {
  return v <= A(0) ? A(0) : v;
}

// |x|. The sign of -0 and of NaN differs by backend; no result depends on it.
template <class A>
DRSN_INLINE A magnitude_of(A x) {
#if defined(__CUDA_ARCH__)
  return fabs(x);
#else
  return x < A(0) ? -x : x;
#endif
}

// sign(x) * max(|x| - tau, 0) for tau >= 0; NaN in either propagates.
template <class A>
DRSN_INLINE A soft_threshold(A x, A tau) {
  const A magnitude = relu(magnitude_of(x) - tau);
  return x < A(0) ? -magnitude : magnitude;
}

// The gradient of tau = max(alpha * mean, 0), from the sum of active * sign * g: a negative product acted as 0.
template <class A>
DRSN_INLINE A threshold_gradient(A alpha, A mean, double sum) {
  return alpha * mean < A(0) ? A(0) : A(0.0 - sum);
}

// The bits of one element, plane p at bit p; `tau` >= 0 or NaN. This is the mask of shrink.
template <class A>
DRSN_INLINE unsigned element_mask(A x, A tau) {
  const A magnitude = magnitude_of(x);
  return unsigned(x < A(0)) << kNegative | unsigned(magnitude > A(0)) << kNonzero |
         unsigned(magnitude > tau) << kActive;
}

// The gradient of x: g where active, plus the row's share of the mean's gradient, along sign(x).
template <class A>
DRSN_INLINE A combine(bool negative, bool nonzero, bool active, A g, A share) {
  return (active ? g : A(0)) + (nonzero ? (negative ? -share : share) : A(0));
}

}  // namespace drsn
