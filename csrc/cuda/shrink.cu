// shrink and its backward: rows on chip, or one kernel after another.
#include "cuda/backend.h"
#include "cuda/lines.cuh"
#include "cuda/mask_backward.cuh"
#include "cuda/on_chip.cuh"
#include "cuda/shrink.cuh"

namespace drsn::cuda {
namespace {

// The number of elements in a statistic, and its index: one per sample or one per row.
template <class acc_t>
__device__ __forceinline__ acc_t count_of(const Rows& rows, bool per_sample) {
  return acc_t(per_sample ? rows.channels * rows.length : rows.length);
}
__device__ __forceinline__ int64_t statistic_index(const Rows& rows, bool per_sample, int64_t n, int64_t c) {
  return per_sample ? n : n * rows.channels + c;
}

template <int N, class acc_t>
__device__ __forceinline__ acc_t total(const acc_t (&numbers)[N]) {
  acc_t sum = numbers[0];
#pragma unroll
  for (int k = 1; k < N; ++k) sum += numbers[k];
  return sum;
}

// The length of a thread's line: of a row or, in channels_last, of a sample.
template <bool channels_last>
__device__ __forceinline__ int line_length(const Rows& rows) {
  return int(channels_last ? rows.length * rows.channels : rows.length);
}

template <class scalar_t, int V, bool channels_last>
__global__ void __launch_bounds__(kOnChipThreads, kFewBlocks)
    shrink_on_chip(const __grid_constant__ Shrink op, const __grid_constant__ OnChip plan,
                   const __grid_constant__ Divisor channels) {
  wait_for_previous();
  using acc_t = Accumulator<scalar_t>;
  using Place = OnChipPlace<channels_last, V>;
  const Place at(plan, op.rows, channels);
  const int length = line_length<channels_last>(op.rows);
  Packed<scalar_t, V> held[kOnChipSlots<V>];
  hold(held, at, length, static_cast<const scalar_t*>(op.x) + fixed(at.line * length));
  acc_t alpha[Place::kRows] = {}, mean[Place::kRows] = {}, tau[Place::kRows];
#pragma unroll
  for (int k = 0; k < Place::kRows; ++k) {  // loaded before the sum, which waits for x
    if (at.exists) alpha[k] = static_cast<const acc_t*>(op.alpha.data)[offset_of(op.alpha, at.n, at.c + k)];
  }
  prefetch_line<V>(at, length, static_cast<const scalar_t*>(op.residual));
  add_abs(mean, held, at, length);
  if (op.per_sample) {
    const acc_t sample = block_sum(total(mean));
#pragma unroll
    for (int k = 0; k < Place::kRows; ++k) mean[k] = sample;
  } else {
    at.sum(plan, mean);
  }
#pragma unroll
  for (int k = 0; k < Place::kRows; ++k) {
    mean[k] /= count_of<acc_t>(op.rows, op.per_sample);
    tau[k] = relu(alpha[k] * mean[k]);
    if (at.first && (at.c + k == 0 || !op.per_sample)) {
      static_cast<acc_t*>(op.mean)[statistic_index(op.rows, op.per_sample, at.n, at.c + k)] = mean[k];
    }
  }
  shrink_held(held, at, length, tau, op.residual, op.y, op.mask);
}

template <class scalar_t, int V>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    shrink_apply(const __grid_constant__ Shrink op, const __grid_constant__ RowValues statistic,
                 const __grid_constant__ LineWalk walk) {
  wait_for_previous();
  using acc_t = Accumulator<scalar_t>;
  constexpr int kSlots = kElementwiseSlots<V>;
  const scalar_t* x = static_cast<const scalar_t*>(op.x);
  const scalar_t* residual = static_cast<const scalar_t*>(op.residual);
  scalar_t* y = static_cast<scalar_t*>(op.y);
  Packed<scalar_t, V> values[kSlots], residuals[kSlots];
  const auto load = [&](int i, const LineWalk::Place& p) {
    values[i] = load_if<V>(p.inside, x + p.element);
    residuals[i] = load_if<V>(p.inside && residual != nullptr, residual + p.element);
  };
  walk_lines<V, kSlots>(walk, load, [&](int i, const LineWalk::Place& p) {
    acc_t tau[V] = {}, mean[V];
    if (p.inside) {
      const LineWalk::Row row = walk.row(p);
      walk.read(tau, op.alpha, row);
      walk.read(mean, statistic, row);
      const acc_t first = relu(tau[0] * mean[0]);
      if (walk.channels_last) {
#pragma unroll
        for (int j = 0; j < V; ++j) tau[j] = relu(tau[j] * mean[j]);
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j) tau[j] = first;
      }
    }
    unsigned word;
    const Vector<scalar_t, V> result = shrink(values[i], residuals[i], [&](int j) { return tau[j]; }, word);
    store<V>(p.inside, y + p.element, result);
    if (op.mask != nullptr) {
      store_mask<V>(p.inside, op.mask + walk.segment(p, kShrinkPlanes), walk.plane_bytes, kShrinkPlanes, p.position,
                    word);
    }
  });
}

// What a row's gradients are made of beside its active sum.
template <class acc_t>
struct RowNumbers {
  acc_t alpha = 0, mean = 0, grad_mean = 0;

  RowNumbers() = default;
  __device__ __forceinline__ RowNumbers(const ShrinkBackward& op, int64_t n, int64_t c) {
    const int64_t i = statistic_index(op.rows, op.per_sample, n, c);
    alpha = static_cast<const acc_t*>(op.alpha.data)[offset_of(op.alpha, n, c)];
    mean = static_cast<const acc_t*>(op.mean)[i];
    if (op.grad_mean != nullptr) grad_mean = static_cast<const acc_t*>(op.grad_mean)[i];
  }
  __device__ __forceinline__ acc_t dtau(acc_t active_sum) const {
    return alpha * mean < acc_t(0) ? acc_t(0) : -active_sum;
  }
  // What each element of the row receives along its sign, from what reaches the mean through tau.
  __device__ __forceinline__ acc_t share(const ShrinkBackward& op, acc_t dmean) const {
    return (dmean + grad_mean) / count_of<acc_t>(op.rows, op.per_sample);
  }
};

template <class scalar_t, int V, bool channels_last>
__global__ void __launch_bounds__(kOnChipThreads, kFewBlocks)
    shrink_backward_on_chip(const __grid_constant__ ShrinkBackward op, const __grid_constant__ OnChip plan,
                            const __grid_constant__ Divisor channels, void* row_dalpha) {
  wait_for_previous();
  using acc_t = Accumulator<scalar_t>;
  using Place = OnChipPlace<channels_last, V>;
  const Place at(plan, op.rows, channels);
  const int length = line_length<channels_last>(op.rows);
  Packed<scalar_t, V> held[kOnChipSlots<V>];
  unsigned word[kOnChipSlots<V>];
  hold_gradient(held, word, at, length, static_cast<const scalar_t*>(op.grad) + fixed(at.line * length), op.mask);
  RowNumbers<acc_t> numbers[Place::kRows];
#pragma unroll
  for (int k = 0; k < Place::kRows; ++k) {
    if (at.exists) numbers[k] = RowNumbers<acc_t>(op, at.n, at.c + k);
  }
  acc_t sum[Place::kRows] = {}, share[Place::kRows];
  add_active(sum, held, word, at, length);
  at.sum(plan, sum);
#pragma unroll
  for (int k = 0; k < Place::kRows; ++k) {
    const acc_t dtau = numbers[k].dtau(sum[k]);
    if (at.first && row_dalpha != nullptr) static_cast<acc_t*>(row_dalpha)[at.row + k] = dtau * numbers[k].mean;
    share[k] = dtau * numbers[k].alpha;
  }
  if (op.per_sample) {
    const acc_t dmean = block_sum(at.first ? total(share) : acc_t(0));
#pragma unroll
    for (int k = 0; k < Place::kRows; ++k) share[k] = dmean;
  }
  if (op.dx == nullptr || !at.exists) return;

#pragma unroll
  for (int k = 0; k < Place::kRows; ++k) share[k] = numbers[k].share(op, share[k]);
  combine_held(held, word, at, length, share, static_cast<scalar_t*>(op.dx) + fixed(at.line * length));
}

// From the rows' active sums to each row's gradient of alpha, and to the share of each row or, where per_sample, of
// each sample. A block takes one sample after another, its threads the rows.
template <class acc_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    shrink_backward_rows(const __grid_constant__ ShrinkBackward op, const acc_t* active_sum, acc_t* row_dalpha,
                         acc_t* share) {
  wait_for_previous();
  const int64_t channels = op.rows.channels;
  for (int64_t n = blockIdx.x; n < op.rows.samples; n += gridDim.x) {
    acc_t sample = 0;
    for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) {
      const int64_t row = n * channels + c;
      const RowNumbers<acc_t> numbers(op, n, c);
      const acc_t dtau = numbers.dtau(active_sum[row]);
      const acc_t dmean = dtau * numbers.alpha;
      if (row_dalpha != nullptr) row_dalpha[row] = dtau * numbers.mean;
      if (op.per_sample) {
        sample += dmean;
      } else {
        share[row] = numbers.share(op, dmean);
      }
    }
    if (op.per_sample) {
      sample = block_sum(sample);
      if (threadIdx.x == 0) share[n] = RowNumbers<acc_t>(op, n, 0).share(op, sample);
    }
  }
}

// f(std::bool_constant<channels_last>{}); in channels_last only whole vectors are on chip.
template <int V, class F>
cudaError_t dispatch_on_chip(bool channels_last, F f) {
  if constexpr (V > 1) {
    if (channels_last) return f(std::true_type{});
  }
  return f(std::false_type{});
}

// If V = 1 fits in registers, every V does. Used to size the workspace, when alignment is not known yet.
bool always_on_chip(const Rows& rows, bool per_sample) { return plan_on_chip(rows, per_sample, 1).fits; }

bool vectors_apply(const Shrink& op, int V) { return aligned(op.x, op.y, op.residual) && vectors_fit(op.rows, V); }

RowValues statistics(const Rows& rows, bool per_sample, const void* mean) {
  return per_sample ? RowValues{mean, 1, 0} : RowValues{mean, rows.channels, 1};
}

AbsMean mean_of(const Shrink& op) { return {op.dtype, op.x, op.mean, nullptr, op.rows, op.per_sample, false}; }

// How dalpha is summed from one number per row. Direct: dalpha has an entry per row. The axis of size 1 stands for the
// row's elements, already summed.
Reduction alpha_reduction(const ShrinkBackward& op) {
  const int64_t sample_stride = !op.alpha_per_sample ? 0 : op.alpha_per_channel ? op.rows.channels : 1;
  const int64_t channel_stride = op.alpha_per_channel ? 1 : 0;
  return Reduction(Broadcast{3, {op.rows.samples, op.rows.channels, 1}, {sample_stride, channel_stride, 0}});
}

// The backward's arrays, and its kernels where the rows do not fit on chip.
struct Backward {
  void* row_dalpha = nullptr;  // of each row: dalpha itself, or what is folded into it, with room for the fold
  void *active_sum = nullptr, *share = nullptr, *sums = nullptr;  // used where the rows do not fit on chip

  Backward(const ShrinkBackward& op, Carve& carve) {
    if (op.dalpha != nullptr) {
      const Reduction to_alpha = alpha_reduction(op);
      row_dalpha = to_alpha.direct ? op.dalpha : carve.take(to_alpha.workspace_elements());
    }
    if (always_on_chip(op.rows, op.per_sample)) return;
    active_sum = carve.take(op.rows.samples * op.rows.channels);
    share = carve.take(op.rows.samples * op.rows.channels);
    sums = carve.take(Reduction(row_axes(op.rows, false)).workspace_elements());
  }

  // The rows' sums, what follows from them for each row, and the gradient once more.
  template <class acc_t>
  cudaError_t run(const ShrinkBackward& op, cudaStream_t stream) const {
    DRSN_CUDA_TRY(row_active_sums(op, active_sum, sums, stream));
    DRSN_CUDA_TRY(launch_next(&shrink_backward_rows<acc_t>, std::min<int64_t>(op.rows.samples, 65535), kThreads, stream,
                              op, static_cast<const acc_t*>(active_sum), static_cast<acc_t*>(row_dalpha),
                              static_cast<acc_t*>(share)));
    if (op.dx == nullptr) return cudaSuccess;
    const RowValues row_share = op.per_sample ? RowValues{share, 1, 0} : RowValues{share, op.rows.channels, 1};
    return combine({op.dtype, op.grad, row_share, op.mask, kShrinkPlanes, op.dx, op.rows}, Stream(stream, true));
  }
};

}  // namespace

int64_t shrink_workspace(const Shrink& op) {
  return always_on_chip(op.rows, op.per_sample) ? 0 : abs_mean_workspace(mean_of(op));
}

cudaError_t shrink_from_means(const Shrink& whole, cudaStream_t stream) {
  return dispatch(
      whole.dtype, [&](int V) { return vectors_apply(whole, V); },
      [&](auto scalar, auto V) {
        using scalar_t = decltype(scalar);
        using acc_t = Accumulator<scalar_t>;
        return for_each_part(whole.rows, [&](const Part& part) {
          Shrink op = whole;
          op.x = part.at<scalar_t>(whole.x);
          op.residual = part.at<scalar_t>(whole.residual);
          op.y = part.at<scalar_t>(whole.y);
          if (op.mask != nullptr) op.mask += part.in_mask(kShrinkPlanes);
          op.alpha = part.values<acc_t>(whole.alpha);
          const RowValues statistic = part.values<acc_t>(statistics(whole.rows, whole.per_sample, whole.mean));
          const LineWalk walk(part, V, kElementwiseSlots<V>);
          return launch_next(&shrink_apply<scalar_t, V>, walk.blocks(), kThreads, stream, op, statistic, walk);
        });
      });
}

cudaError_t shrink(const Shrink& op, void* workspace, cudaStream_t stream) {
  return dispatch(
      op.dtype, [&](int V) { return vectors_apply(op, V); },
      [&](auto scalar, auto V) {
        const OnChip plan = plan_on_chip(op.rows, op.per_sample, V);
        if (plan.fits) {
          return dispatch_on_chip<V>(op.rows.channels_last, [&](auto channels_last) {
            return launch(&shrink_on_chip<decltype(scalar), V, channels_last>, plan.blocks, plan.threads, stream, op,
                          plan, Divisor(op.rows.channels));
          });
        }
        DRSN_CUDA_TRY(abs_mean(mean_of(op), workspace, stream));
        return shrink_from_means(op, stream);
      });
}

int64_t shrink_backward_workspace(const ShrinkBackward& op) { return workspace_of<Backward>(op); }

cudaError_t shrink_backward(const ShrinkBackward& op, void* workspace, cudaStream_t stream) {
  Carve carve(workspace, op.dtype);
  const Backward backward(op, carve);
  DRSN_CUDA_TRY(dispatch(
      op.dtype, [&](int V) { return aligned(op.grad, op.dx) && vectors_fit(op.rows, V); },
      [&](auto scalar, auto V) {
        using scalar_t = decltype(scalar);
        const OnChip plan = plan_on_chip(op.rows, op.per_sample, V);
        if (!plan.fits) return backward.run<Accumulator<scalar_t>>(op, stream);
        return dispatch_on_chip<V>(op.rows.channels_last, [&](auto channels_last) {
          return launch(&shrink_backward_on_chip<scalar_t, V, channels_last>, plan.blocks, plan.threads, stream, op,
                        plan, Divisor(op.rows.channels), backward.row_dalpha);
        });
      }));
  if (backward.row_dalpha == op.dalpha) return cudaSuccess;
  const Target dalpha{op.dalpha, true, 1};
  return fold(op.dtype, alpha_reduction(op), backward.row_dalpha, &dalpha, 1, stream);
}

}  // namespace drsn::cuda
