// Sums along one axis, with whatever else is done to each element on the way, and the fold of partial sums.
//
// An Op says what is summed. It has scalar_t, kVector (V), kSums, an Item, and
//   Item load(outer, inside, element, left)
//     reads V elements from flat index `element` on, index `inside` within `outer`; `left` of them exist;
//   void add(outer, inside, element, left, item, sums)
//     adds the term of its element j to sums[s][j % W], W = 1 or V; the whole warp calls it.
#pragma once

#include "cuda/common.cuh"

namespace drsn::cuda {

// Where a sum goes: element i is sum / divisor, of the accumulator's type or rounded to the scalar type.
struct Target {
  void* data;  // or null: not wanted
  bool accumulators;
  double divisor;

  template <class scalar_t>
  __device__ __forceinline__ void write(int64_t i, Accumulator<scalar_t> sum) const {
    if (data == nullptr) return;
    sum /= Accumulator<scalar_t>(divisor);
    if (accumulators) {
      static_cast<Accumulator<scalar_t>*>(data)[i] = sum;
    } else {
      static_cast<scalar_t*>(data)[i] = narrow<scalar_t>(sum);
    }
  }
};

// The mask of a tensor whose segments are the outer indices of the sum, or one segment.
struct MaskView {
  const uint8_t* data;
  int64_t plane_bytes;
  int planes;
  bool one_segment;

  MaskView(const uint8_t* mask, int64_t length, int plane_count, bool whole)
      : data(mask), plane_bytes(mask_bytes(length)), planes(plane_count), one_segment(whole) {}
  __device__ __forceinline__ int64_t segment(int64_t outer) const {
    return one_segment ? 0 : outer * planes * plane_bytes;
  }
  __device__ __forceinline__ int64_t position(int64_t inside, int64_t element) const {
    return one_segment ? element : inside;
  }
};

template <int kSums>
struct Targets {
  Target sum[kSums];
  bool direct;  // a sum's index is that of `over`, else of the partial sums
  Axes over;

  __device__ __forceinline__ int64_t index(int64_t partial, int64_t element) const {
    return direct ? over.locate(element).offset : partial;
  }
};

// Items in flight a thread.
template <class Op>
constexpr int kUnroll = Op::kVector == 1 && sizeof(typename Op::Item) <= 16 ? 4 : 2;

template <class Op>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    reduce_rows(const __grid_constant__ Op op, const __grid_constant__ ReduceShape shape,
                const __grid_constant__ Targets<Op::kSums> targets) {
  using scalar_t = typename Op::scalar_t;
  using acc_t = Accumulator<scalar_t>;
  constexpr int V = Op::kVector;
  constexpr int kLoads = kUnroll<Op>;
  const int lanes = 1 << shape.lane_bits;
  const int lane = threadIdx.x & (lanes - 1);
  const int64_t group = int64_t(blockIdx.x) * (kThreads >> shape.lane_bits) + (threadIdx.x >> shape.lane_bits);
  const int64_t outer = shape.chunks == 1 ? group : blockIdx.x / unsigned(shape.chunks);
  const int64_t begin = (group - outer * shape.chunks) * shape.chunk;
  const int64_t end = min(begin + shape.chunk, shape.reduced);
  const bool exists = outer < shape.outer;

  acc_t sums[Op::kSums][1] = {};
  // Counted along: computed anew for each vector, they would be most of the work. A chunk is 4096 elements or a
  // thousandth of x, which an int counts.
  const int step = lanes * V;
  int64_t inside = begin + lane * V;
  int64_t element = outer * shape.reduced + inside;
  int left = exists ? int(end - begin) - lane * V : 0;
  // The bounds are the same for the whole warp: chunks are many only where a row has a block.
#pragma unroll 1
  for (int rest = int(end - begin); rest > 0; rest -= step * kLoads) {
    typename Op::Item items[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      items[u] = op.load(outer, inside + u * step, element + u * step, left - u * step);
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      op.add(outer, inside + u * step, element + u * step, left - u * step, items[u], sums);
    }
    inside += step * kLoads;
    element += step * kLoads;
    left -= step * kLoads;
  }
  const int64_t index = targets.index(group, outer * shape.reduced);
#pragma unroll
  for (int s = 0; s < Op::kSums; ++s) {
    if (targets.sum[s].data == nullptr) continue;
    const acc_t sum = group_sum(sums[s][0], lanes);
    if (lane == 0 && exists) targets.sum[s].template write<scalar_t>(index, sum);
  }
}

template <class Op>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    reduce_columns(const __grid_constant__ Op op, const __grid_constant__ ReduceShape shape,
                   const __grid_constant__ Targets<Op::kSums> targets) {
  using scalar_t = typename Op::scalar_t;
  using acc_t = Accumulator<scalar_t>;
  constexpr int V = Op::kVector;
  constexpr int kLoads = kUnroll<Op>;
  __shared__ acc_t shared[V][kThreads];
  const int column = threadIdx.x % shape.columns;
  const int line = threadIdx.x / shape.columns;
  const int row = line % shape.rows;
  const int unit = line / shape.rows;
  const unsigned across = blockIdx.x / unsigned(shape.tiles);
  const unsigned tile = blockIdx.x % unsigned(shape.tiles);
  const unsigned part = across % unsigned(shape.chunks);
  const int64_t outer = int64_t(across / unsigned(shape.chunks)) * shape.units + unit;
  const int64_t inner = (int64_t(tile) * shape.columns + column) * V;
  const int64_t begin = part * shape.chunk;
  const int64_t end = min(begin + shape.chunk, shape.reduced);
  const bool exists = unit < shape.units && outer < shape.outer && inner < shape.inner;

  const int mine = int(min(int64_t(V), shape.inner - inner));  // columns of this thread, where it exists
  acc_t sums[Op::kSums][V] = {};
#pragma unroll 1
  for (int64_t base = begin; base < end; base += shape.rows * kLoads) {
    typename Op::Item items[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t r = base + u * shape.rows + row;
      const int64_t inside = r * shape.inner + inner;
      const int left = exists && r < end ? mine : 0;
      items[u] = op.load(outer, inside, outer * shape.reduced * shape.inner + inside, left);
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t r = base + u * shape.rows + row;
      const int64_t inside = r * shape.inner + inner;
      const int left = exists && r < end ? mine : 0;
      op.add(outer, inside, outer * shape.reduced * shape.inner + inside, left, items[u], sums);
    }
  }
#pragma unroll
  for (int s = 0; s < Op::kSums; ++s) {
    if (targets.sum[s].data == nullptr) continue;
    // Rows are added in halves: the upper half to the lower one.
    for (int rows = shape.rows; rows > 1; rows = (rows + 1) / 2) {
      const int half = (rows + 1) / 2;
      if (exists && row >= half && row < rows) {
#pragma unroll
        for (int j = 0; j < V; ++j) shared[j][threadIdx.x] = sums[s][j];
      }
      __syncthreads();
      if (exists && row + half < rows) {
#pragma unroll
        for (int j = 0; j < V; ++j) sums[s][j] += shared[j][threadIdx.x + half * shape.columns];
      }
      __syncthreads();
    }
    if (exists && row == 0) {
#pragma unroll
      for (int j = 0; j < V; ++j) shared[j][threadIdx.x] = sums[s][j];  // this thread's own place
#pragma unroll 1
      for (int j = 0; j < min(int64_t(V), shape.inner - inner); ++j) {
        const int64_t index = targets.index((outer * shape.chunks + part) * shape.inner + inner + j,
                                            outer * shape.reduced * shape.inner + inner + j);
        targets.sum[s].template write<scalar_t>(index, shared[j][threadIdx.x]);
      }
    }
  }
}

// Adds the partial sums of `reduction` up. `workspace` holds them, followed by room for the fold's own.
cudaError_t fold(DType dtype, const Reduction& reduction, void* workspace, const Target& target, cudaStream_t stream);

// Both steps. The workspace has reduction.workspace_elements() accumulators for each sum that is wanted. Without
// `columns` the reduced axis is always the innermost.
template <bool columns = true, class Op>
cudaError_t reduce(DType dtype, const Op& op, const Reduction& reduction, const Target (&wanted)[Op::kSums],
                   void* workspace, cudaStream_t stream) {
  const ReduceShape shape = plan_reduce(reduction, Op::kVector);
  Targets<Op::kSums> targets{};
  void* partials[Op::kSums] = {};
  char* free = static_cast<char*>(workspace);
  targets.direct = reduction.direct;
  targets.over = Axes(reduction.over);
  for (int s = 0; s < Op::kSums; ++s) {
    targets.sum[s] = wanted[s];
    if (reduction.direct || wanted[s].data == nullptr) continue;
    partials[s] = free;
    free += reduction.workspace_elements() * accumulator_bytes(dtype);
    targets.sum[s] = {partials[s], true, 1};
  }
  auto kernel = &reduce_rows<Op>;
  if constexpr (columns) {
    if (reduction.inner > 1) kernel = &reduce_columns<Op>;
  }
  DRSN_CUDA_TRY(launch(kernel, shape.blocks, shape.threads, stream, op, shape, targets));
  for (int s = 0; s < Op::kSums; ++s) {
    if (reduction.direct || wanted[s].data == nullptr) continue;
    DRSN_CUDA_TRY(fold(dtype, reduction, partials[s], wanted[s], stream));
  }
  return cudaSuccess;
}

// May a reduction move V elements at once? A vector must not leave its row, unless there is but one.
inline bool vectors_fit(const Reduction& r, int V) {
  if (r.inner == 1) return r.outer == 1 || r.reduced % V == 0;
  return (r.outer == 1 && r.reduced == 1) || r.inner % V == 0;
}

// The sum of active * sign * grad, and, for the mask of soft_threshold, dx on the way.
struct GradientSums {
  DType dtype;
  const void* grad;
  MaskView mask;
  int active_plane;
  void* dx;  // or null
  Target active_sum;
};
cudaError_t gradient_sums(const GradientSums& op, const Reduction& reduction, void* workspace, cudaStream_t stream);

// That sum for each row of a shrinkage. The workspace is that of row_axes.
template <class Op>
cudaError_t row_sums(const Op& op, void* active_sum, void* workspace, cudaStream_t stream) {
  const MaskView mask(op.mask, op.rows.segment_length(), kShrinkPlanes, false);
  return gradient_sums({op.dtype, op.grad, mask, kActive, nullptr, Target{active_sum, true, 1}},
                       Reduction(row_axes(op.rows, false)), workspace, stream);
}

// out = active * grad + sign * v. Two planes, those of abs_mean: nothing is active.
struct Combine {
  DType dtype;
  const void* grad;  // or null: 0
  RowValues v;
  const uint8_t* mask;
  int planes;
  void* out;
  Rows rows;
};
cudaError_t combine(const Combine& op, cudaStream_t stream);

}  // namespace drsn::cuda
