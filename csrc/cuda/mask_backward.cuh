// Backward passes that need only a gradient and the mask; several operators share them.
#pragma once

#include "cuda/indexing.cuh"
#include "cuda/reduce.cuh"

namespace drsn::cuda {

// The mask of a tensor as a reduction sees it: each outer index has a segment, or all of the tensor is one.
struct MaskView {
  const uint8_t* data;
  int64_t plane_bytes;
  int planes;
  bool one_segment;

  MaskView(const uint8_t* mask, int64_t length, int plane_count, bool whole)
      : data(mask), plane_bytes(mask_bytes(length)), planes(plane_count), one_segment(whole) {}
  __device__ __forceinline__ int64_t segment_of(int64_t outer) const {
    return one_segment ? 0 : outer * planes * plane_bytes;
  }
  __device__ __forceinline__ int64_t position_of(int64_t position, int64_t element) const {
    return one_segment ? element : position;
  }
};

// The sum of active * sign * grad; for the mask of soft_threshold also dx.
struct ActiveSumCall {
  DType dtype;
  const void* grad;
  MaskView mask;
  int active_plane;
  void* dx;  // or null
  Target sum;
};
cudaError_t active_sum(const ActiveSumCall& op, const Reduction& reduction, void* workspace, cudaStream_t stream);

// That sum per row of a shrink. The workspace is that of row_axes.
template <class Op>
cudaError_t row_active_sums(const Op& op, void* sums, void* workspace, cudaStream_t stream) {
  const MaskView mask(op.mask, op.rows.line_length(), kShrinkPlanes, false);
  return active_sum({op.dtype, op.grad, mask, kActive, nullptr, Target{sums, true, 1}},
                    Reduction(row_axes(op.rows, false)), workspace, stream);
}

// out = active * grad + sign * share. The mask of abs_mean has two planes: nothing is active.
struct Combine {
  DType dtype;
  const void* grad;  // or null: 0
  RowValues share;
  const uint8_t* mask;
  int planes;
  void* out;
  Rows rows;
};
cudaError_t combine(const Combine& op, Stream stream);

}  // namespace drsn::cuda
