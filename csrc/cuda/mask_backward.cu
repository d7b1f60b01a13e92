// The kernels of mask_backward.cuh.
#include "cuda/lines.cuh"
#include "cuda/mask.cuh"
#include "cuda/mask_backward.cuh"

namespace drsn::cuda {
namespace {

template <class scalar, int V>
struct ActiveSum {
  using scalar_t = scalar;
  static constexpr int kVector = V;
  static constexpr int kSums = 1;
  static constexpr int kTensors = 1;
  using acc_t = Accumulator<scalar_t>;
  struct Item {
    Packed<scalar_t, V> g;
    MaskBytes<2> bytes;  // negative, active
  };
  struct Row {
    int64_t segment;

    __device__ __forceinline__ Row(const ActiveSum& op, bool, int64_t outer, int64_t)
        : segment(op.mask.segment_of(outer)) {}
  };

  const scalar_t* grad;
  scalar_t* dx;
  MaskView mask;
  int64_t active_plane;  // in bytes from the first

  template <class left_t>
  __device__ __forceinline__ Item load(const Row& row, int64_t position, int64_t element, left_t left) const {
    return {cuda::load<V>(left, grad + element),
            load_mask<2>(left > 0, mask.data, row.segment, active_plane, mask.position_of(position, element))};
  }
  template <int W, class left_t>
  __device__ __forceinline__ void add(const Row&, int64_t position, int64_t element, left_t left, const Item& item,
                                      acc_t (&sums)[kSums][W]) const {
    const unsigned word = item.bytes.word(mask.position_of(position, element));
    const Vector<acc_t, V> wide = unpack_wide(item.g);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const acc_t g = wide.value[j];
      sums[0][j % W] += test(word, 1, j) ? (test(word, 0, j) ? -g : g) : acc_t(0);
    }
    if (dx == nullptr) return;
    const Vector<scalar_t, V> grads = unpack(item.g);
    Vector<scalar_t, V> passed;
#pragma unroll
    for (int j = 0; j < V; ++j) {  // negative alone: open
      passed.value[j] = test(word, 0, j) || test(word, 1, j) ? grads.value[j] : scalar_t{};
    }
    store<V>(left, dx + element, passed);
  }
};

template <class scalar_t, int V>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    combine_kernel(const __grid_constant__ Combine op, const __grid_constant__ LineWalk walk) {
  wait_for_previous();
  using acc_t = Accumulator<scalar_t>;
  const scalar_t* grad = static_cast<const scalar_t*>(op.grad);
  scalar_t* out = static_cast<scalar_t*>(op.out);
  constexpr int kSlots = kElementwiseSlots<V>;
  Packed<scalar_t, V> g[kSlots];
  MaskBytes<kShrinkPlanes> bytes[kSlots];
  const auto load = [&](int i, const LineWalk::Place& p) {
    g[i] = load_if<V>(p.inside && grad != nullptr, grad + p.element);
    bytes[i] = load_mask<kShrinkPlanes>(p.inside, op.mask, walk.segment(p, op.planes), walk.plane_bytes, p.position,
                                        op.planes);
  };
  walk_lines<V, kSlots>(walk, load, [&](int i, const LineWalk::Place& p) {
    if (!p.inside) return;
    const unsigned word = bytes[i].word(p.position);
    acc_t share[V];
    walk.read(share, op.share, walk.row(p));
    const Vector<acc_t, V> grads = unpack_wide(g[i]);
    Vector<scalar_t, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      result.value[j] = narrow<scalar_t>(drsn::combine(test(word, kNegative, j), test(word, kNonzero, j),
                                                       test(word, kActive, j), grads.value[j], share[j]));
    }
    store<V>(true, out + p.element, result);
  });
}

}  // namespace

cudaError_t active_sum(const ActiveSumCall& op, const Reduction& reduction, void* workspace, cudaStream_t stream) {
  return dispatch(
      op.dtype, [&](int V) { return aligned(op.grad, op.dx) && vectors_fit(reduction, V); },
      [&](auto scalar, auto V) {
        using scalar_t = decltype(scalar);
        const ActiveSum<scalar_t, V> sum{static_cast<const scalar_t*>(op.grad), static_cast<scalar_t*>(op.dx), op.mask,
                                         op.active_plane * op.mask.plane_bytes};
        return reduce(op.dtype, sum, reduction, {op.sum}, workspace, stream);
      });
}

cudaError_t combine(const Combine& whole, Stream stream) {
  return dispatch(
      whole.dtype, [&](int V) { return aligned(whole.grad, whole.out) && vectors_fit(whole.rows, V); },
      [&](auto scalar, auto V) {
        using scalar_t = decltype(scalar);
        return for_each_part(whole.rows, [&](const Part& part) {
          Combine op = whole;
          op.grad = part.at<scalar_t>(whole.grad);
          op.out = part.at<scalar_t>(whole.out);
          op.mask += part.in_mask(op.planes);
          op.share = part.values<Accumulator<scalar_t>>(whole.share);
          const LineWalk walk(part, V, kElementwiseSlots<V>);
          return launch(&combine_kernel<scalar_t, V>, walk.blocks(), kThreads, stream, op, walk);
        });
      });
}

}  // namespace drsn::cuda
