// Parameters to and from the accumulator's type: all of a call in one launch.
#include "cuda/backend.h"
#include "cuda/launch.cuh"
#include "cuda/vectors.cuh"

namespace drsn::cuda {
namespace {

__host__ __device__ constexpr int64_t blocks_of(const Conversion& c) {
  return (c.rows * c.columns + kThreads - 1) / kThreads;
}

template <class scalar_t, class acc_t>
__device__ __forceinline__ void convert_one(bool narrows, void* data, acc_t& wide, int64_t at) {
  scalar_t& element = static_cast<scalar_t*>(data)[at];
  if (narrows) {
    element = narrow<scalar_t>(Accumulator<scalar_t>(wide));
  } else {
    wide = acc_t(widen(element));
  }
}

// A block has numbers of one tensor.
template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks) convert_all(const __grid_constant__ Conversions op) {
  wait_for_previous();
  int64_t block = blockIdx.x;
  int i = 0;
  while (block >= blocks_of(op.of[i])) block -= blocks_of(op.of[i++]);
  const Conversion& c = op.of[i];
  const int64_t k = block * kThreads + threadIdx.x;
  if (k >= c.rows * c.columns) return;
  const int64_t row = c.rows == 1 ? 0 : k / c.columns;
  const int64_t at = row * c.row_stride + (k - row * c.columns) * c.column_stride;
  acc_t& wide = static_cast<acc_t*>(c.wide)[k];
  switch (c.dtype) {
    case DType::kHalf:
      return convert_one<__half>(op.narrows, c.data, wide, at);
    case DType::kBFloat16:
      return convert_one<__nv_bfloat16>(op.narrows, c.data, wide, at);
    case DType::kFloat:
      return convert_one<float>(op.narrows, c.data, wide, at);
    default:
      return convert_one<double>(op.narrows, c.data, wide, at);
  }
}

}  // namespace

cudaError_t convert(const Conversions& op, cudaStream_t stream) {
  int64_t blocks = 0;
  for (int i = 0; i < op.count; ++i) blocks += blocks_of(op.of[i]);
  return dispatch_accumulator(op.accumulator, [&](auto accumulator) {
    // what narrows follows the kernels of its call
    return launch(&convert_all<decltype(accumulator)>, blocks, kThreads, Stream(stream, op.narrows), op);
  });
}

}  // namespace drsn::cuda
