// Matrix products in tiles: a block makes kTile x kTile sums.
#pragma once

#include "cuda/gate_math.cuh"
#include "cuda/launch.cuh"
#include "cuda/plan.h"
#include "cuda/vectors.cuh"

namespace drsn::cuda {

constexpr int kThreadsPerPlace = kThreads / kTile;  // threads for each place along a tile's edge
constexpr int kColumns = 4;                         // neighbouring sums of a thread
constexpr int kTermsAtOnce = 8;
static_assert(kTile == kWarp && kThreadsPerPlace * kColumns == kTile);

// The shared memory of a block.
template <class acc_t>
struct Tiles {
  // left[k] and right[k] are rows; the padding keeps 4 neighbours aligned and spreads the banks.
  alignas(32) acc_t left[kTile][kTile + 4];
  alignas(32) acc_t right[kTile][kTile + 4];
  acc_t places[kThreadsPerPlace][kTile];
  NormNumbers<acc_t> norm[kTile];  // of a tile's features or samples
  acc_t sample[2][kTile];
};

// For __launch_bounds__: without the bound ptxas takes more registers than two blocks have; in double it would spill.
template <class acc_t>
constexpr int kGateBlocks = sizeof(acc_t) == sizeof(float) ? 2 : kFewBlocks;

// The sum over the threads of each place threadIdx.x % kTile, in every thread.
template <class acc_t>
__device__ __forceinline__ acc_t place_sum(Tiles<acc_t>& tiles, acc_t v) {
  __syncthreads();
  tiles.places[threadIdx.x / kTile][threadIdx.x % kTile] = v;
  __syncthreads();
  acc_t sum = 0;
#pragma unroll
  for (int i = 0; i < kThreadsPerPlace; ++i) sum += tiles.places[i][threadIdx.x % kTile];
  return sum;
}

// An operand of a product has
//   kAlongK                whether neighbours in memory differ in k
//   count                  the size of its outer index i
//   prepare(i0, k0, first) called by the whole block before each tile
//   at(i, k)
template <class acc_t>
struct Matrix {
  const acc_t* data;
  int64_t count, stride;
};
template <class acc_t>
struct RowMajor : Matrix<acc_t> {  // at(i, k) = data[i][k]
  static constexpr bool kAlongK = true;
  __device__ __forceinline__ void prepare(int64_t, int64_t, bool) const {}
  __device__ __forceinline__ acc_t at(int64_t i, int64_t k) const { return this->data[i * this->stride + k]; }
};
template <class acc_t>
struct ColumnMajor : Matrix<acc_t> {  // at(i, k) = data[k][i]
  static constexpr bool kAlongK = false;
  __device__ __forceinline__ void prepare(int64_t, int64_t, bool) const {}
  __device__ __forceinline__ acc_t at(int64_t i, int64_t k) const { return this->data[k * this->stride + i]; }
};

template <class acc_t, class Operand>
__device__ __forceinline__ void load_tile(Operand& operand, acc_t (&tile)[kTile][kTile + 4], int64_t i0, int64_t k0,
                                          int64_t end) {
  const int fast = threadIdx.x % kTile;
#pragma unroll
  for (int u = 0; u < kTile / kThreadsPerPlace; ++u) {
    const int slow = threadIdx.x / kTile + u * kThreadsPerPlace;
    const int i = Operand::kAlongK ? slow : fast;
    const int k = Operand::kAlongK ? fast : slow;
    tile[k][i] = i0 + i < operand.count && k0 + k < end ? operand.at(i0 + i, k0 + k) : acc_t(0);
  }
}

// sums[q] = sum over k from begin to end, in order, of left(i, k) * right(j, k) at i = i0 + thread / 8 and j = j0 +
// 4 * (thread % 8) + q.
template <class acc_t, class Left, class Right>
__device__ __forceinline__ void products(Tiles<acc_t>& tiles, Left& left, Right& right, int64_t i0, int64_t j0,
                                         int64_t begin, int64_t end, acc_t (&sums)[kColumns]) {
  const int row = threadIdx.x / kThreadsPerPlace;
  const int column = threadIdx.x % kThreadsPerPlace * kColumns;
#pragma unroll
  for (int q = 0; q < kColumns; ++q) sums[q] = 0;
#pragma unroll 1
  for (int64_t k0 = begin; k0 < end; k0 += kTile) {
    __syncthreads();  // the tiles before may still be read
    left.prepare(i0, k0, k0 == begin);
    right.prepare(j0, k0, k0 == begin);
    load_tile(left, tiles.left, i0, k0, end);
    load_tile(right, tiles.right, j0, k0, end);
    __syncthreads();
    const int terms = int(min(int64_t(kTile), end - k0));  // behind them are zeros
#pragma unroll 1
    for (int first = 0; first < terms; first += kTermsAtOnce) {
#pragma unroll
      for (int k = first; k < first + kTermsAtOnce; ++k) {
        const acc_t a = tiles.left[k][row];
        const auto b = *reinterpret_cast<const Vector<acc_t, kColumns>*>(&tiles.right[k][column]);
#pragma unroll
        for (int q = 0; q < kColumns; ++q) sums[q] += a * b.value[q];
      }
    }
  }
}

// Calls use(i, j, sum) for the thread's sums of a product that has rows x columns of them.
template <class acc_t, class Use>
__device__ __forceinline__ void for_each_sum(int64_t i0, int64_t j0, int64_t rows, int64_t columns,
                                             const acc_t (&sums)[kColumns], Use use) {
  const int64_t i = i0 + threadIdx.x / kThreadsPerPlace;
#pragma unroll
  for (int q = 0; q < kColumns; ++q) {
    const int64_t j = j0 + threadIdx.x % kThreadsPerPlace * kColumns + q;
    if (i < rows && j < columns) use(i, j, sums[q]);
  }
}

}  // namespace drsn::cuda
