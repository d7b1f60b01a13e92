// The kernels of mask_backward.cuh.
#include "cuda/launch.cuh"
#include "cuda/mask.cuh"
#include "cuda/mask_backward.cuh"

namespace drsn::cuda {
namespace {

template <class scalar, int V>
struct ActiveSum {
  using scalar_t = scalar;
  static constexpr int kVector = V;
  static constexpr int kSums = 1;
  using acc_t = Accumulator<scalar_t>;
  using Row = NoRow;
  struct Item {
    Packed<scalar_t, V> g;
    MaskBytes bytes;
  };

  const scalar_t* grad;
  scalar_t* dx;
  MaskView mask;
  int active_plane;

  __device__ __forceinline__ Item load(int64_t outer, int64_t position, int64_t element, int left) const {
    return {cuda::load<V>(left, grad + element),
            load_mask(left > 0, mask.data, mask.segment_of(outer), mask.plane_bytes, mask.planes,
                      mask.position_of(position, element))};
  }
  template <int W>
  __device__ __forceinline__ void add(const Row&, int64_t, int64_t position, int64_t element, int left,
                                      const Item& item, acc_t (&sums)[kSums][W]) const {
    const unsigned word = item.bytes.word(mask.position_of(position, element));
    const unsigned active_bits = word >> 8 * active_plane;
    const Vector<scalar_t, V> grads = unpack(item.g);
    Vector<scalar_t, V> passed;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const acc_t g = widen(grads.value[j]);
      const bool negative = test(word, kNegative, j);
      const bool active = test(active_bits, 0, j);
      sums[0][j % W] += active ? (negative ? -g : g) : acc_t(0);
      passed.value[j] = active || negative ? grads.value[j] : scalar_t{};  // negative alone: open
    }
    if (dx != nullptr) store<V>(left, dx + element, passed);
  }
};

template <class scalar_t, int V>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    combine_kernel(const __grid_constant__ Combine op, const __grid_constant__ LineWalk walk) {
  wait_for_previous();
  using acc_t = Accumulator<scalar_t>;
  const scalar_t* grad = static_cast<const scalar_t*>(op.grad);
  const acc_t* shares = static_cast<const acc_t*>(op.share.data);
  scalar_t* out = static_cast<scalar_t*>(op.out);
  Packed<scalar_t, V> g[kElementwiseSlots<V>];
  MaskBytes bytes[kElementwiseSlots<V>];
  const auto load = [&](int i, const LineWalk::Place& p) {
    g[i] = load_if<V>(p.inside && grad != nullptr, grad + p.element);
    bytes[i] =
        load_mask(p.inside, op.mask, p.line * op.planes * walk.plane_bytes, walk.plane_bytes, op.planes, p.position);
  };
  walk_lines<V>(walk, load, [&](int i, LineWalk::Place p) {
    if (!p.inside) return;
    const unsigned word = bytes[i].word(p.position);
    acc_t share = 0;
    const Vector<scalar_t, V> grads = unpack(g[i]);
    Vector<scalar_t, V> result;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (j == 0 || walk.channels_last) {
        share = shares[offset_of(op.share, p.n, p.c)];
        walk.advance(p);
      }
      result.value[j] = narrow<scalar_t>(drsn::combine(test(word, kNegative, j), test(word, kNonzero, j),
                                                       test(word, kActive, j), acc_t(widen(grads.value[j])), share));
    }
    store<V>(V, out + p.element, result);
  });
}

}  // namespace

cudaError_t active_sum(const ActiveSumCall& op, const Reduction& reduction, void* workspace, cudaStream_t stream) {
  return dispatch(
      op.dtype, [&](int V) { return aligned(op.grad, op.dx) && vectors_fit(reduction, V); },
      [&](auto scalar, auto V) {
        using scalar_t = decltype(scalar);
        const ActiveSum<scalar_t, V> sum{static_cast<const scalar_t*>(op.grad), static_cast<scalar_t*>(op.dx), op.mask,
                                         op.active_plane};
        return reduce(op.dtype, sum, reduction, {op.sum}, workspace, stream);
      });
}

cudaError_t combine(const Combine& op, Stream stream) {
  return dispatch(
      op.dtype, [&](int V) { return aligned(op.grad, op.out) && vectors_fit(op.rows, V); },
      [&](auto scalar, auto V) {
        const LineWalk walk(op.rows, V);
        return launch(&combine_kernel<decltype(scalar), V>, elementwise_blocks(walk.total, V), kThreads, stream, op,
                      walk);
      });
}

}  // namespace drsn::cuda
