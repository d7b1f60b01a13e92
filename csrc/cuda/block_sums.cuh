// Sums over the threads of a warp, of a row (lanes) or of a block, in a fixed order; every thread gets the sum.
#pragma once

#include <cuda_runtime.h>

#include "cuda/plan.h"

namespace drsn::cuda {

template <class acc_t>
__device__ __forceinline__ acc_t warp_sum(acc_t v) {
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

// Over `lanes` neighbouring threads, a power of two. The whole block must call it.
template <class acc_t>
__device__ __forceinline__ acc_t lane_sum(acc_t v, int lanes) {
  __shared__ acc_t warps[kOnChipThreads / kWarp];
#pragma unroll 1
  for (int d = min(lanes, kWarp) / 2; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  if (lanes <= kWarp) return v;
  __syncthreads();  // an earlier sum may still be read
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) warps[warp] = v;
  __syncthreads();
  const int count = lanes / kWarp;
  const int first = warp / count * count;
  v = warps[first];
#pragma unroll 1
  for (int i = 1; i < count; ++i) v += warps[first + i];
  return v;
}

// A block of any number of warps. Code shared with lane_sum would cost some kernels registers.
template <class acc_t>
__device__ __forceinline__ acc_t block_sum(acc_t v) {
  __shared__ acc_t warps[kOnChipThreads / kWarp];
#pragma unroll 1
  for (int d = kWarp / 2; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  __syncthreads();  // an earlier sum may still be read
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = v;
  __syncthreads();
  v = warps[0];
#pragma unroll 1
  for (int i = 1; i < int(blockDim.x) / kWarp; ++i) v += warps[i];
  return v;
}

// Over the `depth` levels of threads that are `columns` apart; level 0 gets the sums. The upper half of the levels is
// added to the lower half, until one is left. The whole block must call it; a thread that does not exist adds nothing.
template <int N, int kWidth, class acc_t>
__device__ __forceinline__ void level_sum(acc_t (&sums)[N], acc_t (&shared)[N][kWidth], int columns, int depth,
                                          int level, bool exists) {
  for (int levels = depth; levels > 1; levels = (levels + 1) / 2) {
    const int half = (levels + 1) / 2;
    if (exists && level >= half && level < levels) {
#pragma unroll
      for (int j = 0; j < N; ++j) shared[j][threadIdx.x] = sums[j];
    }
    __syncthreads();
    if (exists && level + half < levels) {
#pragma unroll
      for (int j = 0; j < N; ++j) sums[j] += shared[j][threadIdx.x + half * columns];
    }
    __syncthreads();
  }
}

// The same in a block of at most kWidth threads; all levels get the sums.
template <int kWidth, int N, class acc_t>
__device__ __forceinline__ void column_sum(acc_t (&sums)[N], int columns, int depth, int level, int column,
                                           bool exists) {
  __shared__ acc_t shared[N][kWidth];
  __syncthreads();  // an earlier sum may still be read
  level_sum(sums, shared, columns, depth, level, exists);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (level == 0) shared[j][column] = sums[j];
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < N; ++j) sums[j] = shared[j][column];
}

// The threads that share a sum over many numbers.
struct WholeWarp {
  static __device__ __forceinline__ int rank() { return threadIdx.x % kWarp; }
  static __device__ __forceinline__ int size() { return kWarp; }
  template <class acc_t>
  static __device__ __forceinline__ acc_t sum(acc_t v) {
    return warp_sum(v);
  }
};
struct WholeBlock {
  static __device__ __forceinline__ int rank() { return threadIdx.x; }
  static __device__ __forceinline__ int size() { return blockDim.x; }
  template <class acc_t>
  static __device__ __forceinline__ acc_t sum(acc_t v) {
    return block_sum(v);
  }
};

}  // namespace drsn::cuda
