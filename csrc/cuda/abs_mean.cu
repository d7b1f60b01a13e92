// abs_mean and its backward.
#include "cuda/backend.h"
#include "cuda/launch.cuh"
#include "cuda/mask.cuh"
#include "cuda/mask_backward.cuh"
#include "cuda/reduce.cuh"

namespace drsn::cuda {
namespace {

template <class scalar, int V>
struct AbsSum {
  using scalar_t = scalar;
  static constexpr int kVector = V;
  static constexpr int kSums = 1;
  static constexpr int kTensors = 1;
  using acc_t = Accumulator<scalar_t>;
  using Item = Packed<scalar_t, V>;
  struct Row {
    uint8_t* segment;  // or null

    __device__ __forceinline__ Row(const AbsSum& op, bool, int64_t outer, int64_t)
        : segment(op.mask == nullptr ? nullptr : op.mask + outer * kAbsMeanPlanes * op.plane_bytes) {}
  };

  const scalar_t* x;
  uint8_t* mask;  // or null
  int64_t plane_bytes;

  template <class left_t>
  __device__ __forceinline__ Item load(const Row&, int64_t, int64_t element, left_t left) const {
    return cuda::load<V>(left, x + element);
  }
  template <int W, class left_t>
  __device__ __forceinline__ void add(const Row& row, int64_t position, int64_t, left_t left, const Item& packed,
                                      acc_t (&sums)[kSums][W]) const {
    const Vector<acc_t, V> item = unpack_wide(packed);
#pragma unroll
    for (int j = 0; j < V; ++j) sums[0][j % W] += magnitude_of(item.value[j]);
    if (mask != nullptr) {
      const unsigned word = signs_of(item);
      store_mask<V>(left > 0, row.segment, plane_bytes, kAbsMeanPlanes, position, word);
    }
  }
};

cudaError_t abs_sum(const AbsMean& op, const Reduction& reduction, uint8_t* mask, void* mean, void* workspace,
                    Stream stream) {
  const double count = double(op.per_sample ? op.rows.channels * op.rows.length : op.rows.length);
  return dispatch(
      op.dtype, [&](int V) { return aligned(op.x) && vectors_fit(reduction, V); },
      [&](auto scalar, auto V) {
        using scalar_t = decltype(scalar);
        const AbsSum<scalar_t, V> sum{static_cast<const scalar_t*>(op.x), mask, mask_bytes(op.rows.line_length())};
        return reduce(op.dtype, sum, reduction, {Target{mean, true, count}}, workspace, stream);
      });
}

// reduce_columns writes the mask on the way only if no byte of it holds channels of two positions.
bool needs_mask_pass(const AbsMean& op) {
  return op.mask != nullptr && op.rows.channels_last && !op.per_sample && op.rows.channels % 8 != 0;
}

// Where each row has its own segment of the mask, a sample is summed row by row: the mean has the same bits with a mask
// and without.
Reduction reduction_of(const AbsMean& op) {
  const bool whole = op.per_sample && (op.rows.channels_last || !op.masked);
  return Reduction(whole ? sample_axes(op.rows) : row_axes(op.rows, op.per_sample));
}

}  // namespace

int64_t abs_mean_workspace(const AbsMean& op) {
  return reduction_of(op).workspace_elements() * accumulator_bytes(op.dtype);
}

cudaError_t abs_mean(const AbsMean& op, void* workspace, cudaStream_t stream) {
  const bool mask_pass = needs_mask_pass(op);
  if (mask_pass) {
    DRSN_CUDA_TRY(abs_sum(op, Reduction(sample_axes(op.rows)), op.mask, nullptr, nullptr, stream));
  }
  return abs_sum(op, reduction_of(op), mask_pass ? nullptr : op.mask, op.mean, workspace, Stream(stream, mask_pass));
}

cudaError_t abs_mean_backward(const AbsMeanBackward& op, cudaStream_t stream) {
  return combine({op.dtype, nullptr, op.grad, op.mask, kAbsMeanPlanes, op.dx, op.rows}, stream);
}

}  // namespace drsn::cuda
