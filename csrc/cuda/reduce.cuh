// Sums along one axis of a tensor, and the fold that adds up their partial sums.
//
// An Op says what is summed, and may do more to each element. It has scalar_t, kVector (V), kSums, kTensors, which
// are read, an Item, and
//   Row(op, exists, outer, inner)
//     what a thread needs for all of its vectors, whose outer index and inner one, of the first element, are these; it
//     has none unless it exists;
//   Item load(row, position, element, left)
//     reads V elements from flat index `element`, at `position` within the outer index; what exists of them, `left`, is
//     true or false or, for the last ones of an axis that V does not divide, a number;
//   void add(row, position, element, left, item, sums)
//     adds the term of the item's element j to sums[s][j % W], W = 1 or V; the whole warp calls it.
#pragma once

#include "cuda/block_sums.cuh"
#include "cuda/indexing.cuh"
#include "cuda/launch.cuh"
#include "cuda/vectors.cuh"

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

template <int kSums>
struct Targets {
  Target sum[kSums];
  bool direct;  // sums go to the result, at the offsets of `over`; else they are partial
  Axes over;

  __device__ __forceinline__ int64_t index(int64_t partial, int64_t element) const {
    return direct ? over.locate(element).offset : partial;
  }
};

// The Row of an Op that needs none.
struct NoRow {
  template <class Op>
  __device__ __forceinline__ NoRow(const Op&, bool, int64_t, int64_t) {}
};

// Items that a thread loads before it uses the first.
template <class Op>
constexpr int kUnroll = Op::kVector == 1 && sizeof(typename Op::Item) <= 16 ? 4 : 4 / Op::kTensors;

template <class Op>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    reduce_rows(const __grid_constant__ Op op, const __grid_constant__ ReduceShape shape,
                const __grid_constant__ Targets<Op::kSums> targets) {
  wait_for_previous();
  using scalar_t = typename Op::scalar_t;
  using acc_t = Accumulator<scalar_t>;
  constexpr int V = Op::kVector;
  constexpr int kLoads = kUnroll<Op>;
  const int lanes = 1 << shape.lane_bits;
  const int lane = threadIdx.x & (lanes - 1);
  const int64_t piece = int64_t(blockIdx.x) * (kThreads >> shape.lane_bits) + (threadIdx.x >> shape.lane_bits);
  const int64_t outer = shape.pieces == 1 ? piece : blockIdx.x / unsigned(shape.pieces);
  const int64_t begin = (piece - outer * shape.pieces) * shape.piece_length;
  const int64_t end = min(begin + shape.piece_length, shape.reduced);
  const bool exists = outer < shape.outer;
  const typename Op::Row row(op, exists, outer, 0);

  acc_t sums[Op::kSums][1] = {};
  // These are counted up: to compute them for each vector would be most of the work. An int is enough: a piece is 4096
  // elements or a thousandth of x.
  const int step = lanes * V;
  const int length = int(end - begin);
  const int whole = whole_vectors<V>(length);
  int64_t position = begin + lane * V;
  int64_t element = outer * shape.reduced + position;
  int left = exists ? whole - lane * V : 0;
  // The bounds are the same for the whole warp: where an axis has several pieces, each has a block.
#pragma unroll 1
  for (int rest = whole; rest > 0; rest -= step * kLoads) {
    typename Op::Item items[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      items[u] = op.load(row, position + u * step, element + u * step, left > u * step);
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      op.add(row, position + u * step, element + u * step, left > u * step, items[u], sums);
    }
    position += step * kLoads;
    element += step * kLoads;
    left -= step * kLoads;
  }
  if constexpr (V > 1) {  // a cut-off vector
    if (whole < length) {
      position = begin + whole + lane * V;
      element = outer * shape.reduced + position;
      left = exists ? length - whole - lane * V : 0;
      op.add(row, position, element, left, op.load(row, position, element, left), sums);
    }
  }
  const int64_t index = targets.index(piece, outer * shape.reduced);
#pragma unroll
  for (int s = 0; s < Op::kSums; ++s) {
    if (targets.sum[s].data == nullptr) continue;
    const acc_t sum = lane_sum(sums[s][0], lanes);
    if (lane == 0 && exists) targets.sum[s].template write<scalar_t>(index, sum);
  }
}

template <class Op>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    reduce_columns(const __grid_constant__ Op op, const __grid_constant__ ReduceShape shape,
                   const __grid_constant__ Targets<Op::kSums> targets) {
  wait_for_previous();
  using scalar_t = typename Op::scalar_t;
  using acc_t = Accumulator<scalar_t>;
  constexpr int V = Op::kVector;
  constexpr int kLoads = kUnroll<Op>;
  __shared__ acc_t shared[V][kThreads];
  const int column = threadIdx.x % shape.columns;
  const int above = threadIdx.x / shape.columns;
  const int level = above % shape.depth;
  const int nth = above / shape.depth;
  const unsigned across = blockIdx.x / unsigned(shape.tiles);
  const unsigned tile = blockIdx.x % unsigned(shape.tiles);
  const unsigned piece = across % unsigned(shape.pieces);
  const int64_t outer = int64_t(across / unsigned(shape.pieces)) * shape.outers + nth;
  const int64_t inner = (int64_t(tile) * shape.columns + column) * V;
  const int64_t begin = piece * shape.piece_length;
  const int64_t end = min(begin + shape.piece_length, shape.reduced);
  const bool exists = nth < shape.outers && outer < shape.outer && inner < shape.inner;
  const typename Op::Row row(op, exists, outer, inner);

  acc_t sums[Op::kSums][V] = {};
  const int64_t step = shape.depth * shape.inner;  // counted up as in reduce_rows
  int64_t r = begin + level;
  int64_t position = r * shape.inner + inner;
  int64_t element = outer * shape.reduced * shape.inner + position;
#pragma unroll 1
  for (int64_t base = begin; base < end; base += shape.depth * kLoads) {
    typename Op::Item items[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      items[u] = op.load(row, position + u * step, element + u * step, exists && r + u * shape.depth < end);
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      op.add(row, position + u * step, element + u * step, exists && r + u * shape.depth < end, items[u], sums);
    }
    r += shape.depth * kLoads;
    position += step * kLoads;
    element += step * kLoads;
  }
#pragma unroll
  for (int s = 0; s < Op::kSums; ++s) {
    if (targets.sum[s].data == nullptr) continue;
    level_sum(sums[s], shared, shape.columns, shape.depth, level, exists);
    if (exists && level == 0) {
#pragma unroll
      for (int j = 0; j < V; ++j) shared[j][threadIdx.x] = sums[s][j];  // this thread's own place
#pragma unroll 1
      for (int j = 0; j < V; ++j) {
        const int64_t index = targets.index((outer * shape.pieces + piece) * shape.inner + inner + j,
                                            outer * shape.reduced * shape.inner + inner + j);
        targets.sum[s].template write<scalar_t>(index, shared[j][threadIdx.x]);
      }
    }
  }
}

// Adds up the partial sums of `reduction` for each of the targets. They are in `workspace`, and after those of a target
// is room for the ones of the fold.
constexpr int kMostTargets = 5;
cudaError_t fold(DType dtype, const Reduction& reduction, void* workspace, const Target* targets, int count,
                 cudaStream_t stream);

// Sums and fold. The workspace has reduction.workspace_elements() accumulators for each sum that is wanted. `columns`:
// the reduced axis may be another than the innermost.
template <bool columns = true, class Op>
cudaError_t reduce(DType dtype, const Op& op, const Reduction& reduction, const Target (&wanted)[Op::kSums],
                   void* workspace, Stream stream) {
  const ReduceShape shape = plan_reduce(reduction, Op::kVector);
  static_assert(Op::kSums <= kMostTargets);
  Targets<Op::kSums> targets{};
  Target folded[Op::kSums];
  int count = 0;
  char* free = static_cast<char*>(workspace);
  targets.direct = reduction.direct;
  targets.over = Axes(reduction.over);
  for (int s = 0; s < Op::kSums; ++s) {
    targets.sum[s] = wanted[s];
    if (reduction.direct || wanted[s].data == nullptr) continue;
    folded[count++] = wanted[s];
    targets.sum[s] = {free, true, 1};
    free += reduction.workspace_elements() * accumulator_bytes(dtype);
  }
  auto kernel = &reduce_rows<Op>;
  if constexpr (columns) {
    if (reduction.inner > 1) kernel = &reduce_columns<Op>;
  }
  DRSN_CUDA_TRY(launch(kernel, shape.blocks, shape.threads, stream, op, shape, targets));
  return fold(dtype, reduction, workspace, folded, count, stream);
}

// True if a reduction can move V elements at once: no vector crosses the end of its outer index, unless there is one.
inline bool vectors_fit(const Reduction& r, int V) {
  if (r.inner == 1) return r.outer == 1 || r.reduced % V == 0;
  return r.inner % V == 0;
}

}  // namespace drsn::cuda
