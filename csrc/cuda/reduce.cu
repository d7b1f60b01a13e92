// The fold: adds up the partial sums of a reduction, of all that it sums in one launch.
#include "cuda/reduce.cuh"

namespace drsn::cuda {
namespace {

struct Fold {
  Axes kept, target, reduced;    // strides of the entries in the partial sums and in the result; of the terms
  int64_t entries, terms;        // sums, and partial sums of each
  int64_t piece_length, pieces;  // of an entry's terms
  int lane_bits;
  const void* partials;
  int64_t stride;  // accumulators from the partial sums of one target to those of the next
  int64_t blocks;  // of a target
  Target out[kMostTargets];
};

template <class scalar_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks) fold_kernel(const __grid_constant__ Fold p) {
  wait_for_previous();
  using acc_t = Accumulator<scalar_t>;
  const int lanes = 1 << p.lane_bits;
  const int lane = threadIdx.x & (lanes - 1);
  const unsigned target = blockIdx.x / unsigned(p.blocks);
  const int64_t block = blockIdx.x - target * unsigned(p.blocks);
  const int64_t piece = block * (kThreads >> p.lane_bits) + (threadIdx.x >> p.lane_bits);
  const int64_t entry = p.pieces == 1 ? piece : piece / p.pieces;
  const bool exists = entry < p.entries;
  acc_t sum = 0;
  if (exists) {
    const acc_t* partials = static_cast<const acc_t*>(p.partials) + target * p.stride + p.kept.locate(entry).offset;
    const int64_t begin = (piece - entry * p.pieces) * p.piece_length;
    const int64_t end = min(begin + p.piece_length, p.terms);
#pragma unroll 1
    for (int64_t i = begin + lane; i < end; i += lanes) sum += partials[p.reduced.locate(i).offset];
  }
  sum = lane_sum(sum, lanes);
  if (exists && lane == 0) p.out[target].write<scalar_t>(p.pieces == 1 ? p.target.locate(entry).offset : piece, sum);
}

cudaError_t launch_fold(DType dtype, Fold p, int targets, cudaStream_t stream) {
  const int lanes = p.piece_length <= 8 ? 1 : p.piece_length <= 1024 ? kWarp : kThreads;
  while (1 << p.lane_bits < lanes) ++p.lane_bits;
  p.blocks = ceil_div(p.entries * p.pieces, kThreads / lanes);
  if (dtype == DType::kComplexFloat) dtype = DType::kFloat;
  if (dtype == DType::kComplexDouble) dtype = DType::kDouble;
  return dispatch(dtype, [&](auto scalar) {
    return launch_next(&fold_kernel<decltype(scalar)>, targets * p.blocks, kThreads, stream, p);
  });
}

}  // namespace

cudaError_t fold(DType dtype, const Reduction& reduction, void* workspace, const Target* targets, int count,
                 cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  Fold p{};
  int kept = 0, reduced = 0;
  int64_t stride[kMaxAxes];
  int64_t next = 1;
  for (int i = reduction.over.axes - 1; i >= 0; --i) {
    stride[i] = next;
    next *= reduction.size_of_partials(i);
  }
  for (int i = 0; i < reduction.over.axes; ++i) {
    const int64_t size = reduction.size_of_partials(i);
    if (reduction.over.stride[i] == 0) {
      p.reduced.add(reduced++, size, stride[i]);
    } else {
      p.kept.add(kept, size, stride[i]);
      p.target.add(kept++, size, reduction.over.stride[i]);
    }
  }
  p.entries = reduction.entries();
  p.terms = reduction.terms();
  p.pieces = reduction.fold_pieces();
  p.partials = workspace;
  p.stride = reduction.workspace_elements();
  if (p.pieces == 1) {
    p.piece_length = p.terms;
    std::copy(targets, targets + count, p.out);
    return launch_fold(dtype, p, count, stream);
  }
  p.piece_length = ceil_div(p.terms, p.pieces);
  for (int t = 0; t < count; ++t) {
    const int64_t at = t * p.stride + reduction.partials();
    p.out[t] = {static_cast<char*>(workspace) + at * accumulator_bytes(dtype), true, 1};
  }
  DRSN_CUDA_TRY(launch_fold(dtype, p, count, stream));

  Fold last{};
  last.kept.add(0, p.entries, p.pieces);
  last.target = p.target;
  last.reduced.add(0, p.pieces, 1);
  last.entries = p.entries;
  last.terms = last.piece_length = p.pieces;
  last.pieces = 1;
  last.partials = p.out[0].data;
  last.stride = p.stride;
  std::copy(targets, targets + count, last.out);
  return launch_fold(dtype, last, count, stream);
}

}  // namespace drsn::cuda
