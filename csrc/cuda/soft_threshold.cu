// soft_threshold and its backward, real and complex.
#include "cuda/backend.h"
#include "cuda/launch.cuh"
#include "cuda/mask.cuh"
#include "cuda/mask_backward.cuh"
#include "cuda/reduce.cuh"

namespace drsn::cuda {
namespace {

// Soft-thresholds the V elements from e. The whole warp calls it, where there is a mask.
template <int V, class scalar_t>
__device__ __forceinline__ void threshold(const SoftThreshold& op, const Axes& over, int64_t e, bool inside,
                                          const Packed<scalar_t, V>& values) {
  using acc_t = Accumulator<scalar_t>;
  acc_t tau[V];
#pragma unroll
  for (int j = 0; j < V; ++j) tau[j] = acc_t(op.value);
  if (inside && op.tau != nullptr) {
    if (std::is_same_v<scalar_t, acc_t> || op.tau_in_accumulator) {
      over.read(tau, e, static_cast<const acc_t*>(op.tau));
    } else {
      over.read(tau, e, static_cast<const scalar_t*>(op.tau));
    }
  }
  const Vector<acc_t, V> mine = unpack_wide(values);
  Vector<scalar_t, V> result;
  unsigned negative = 0, open = 0, passes = 0;
#pragma unroll
  for (int j = V - 1; j >= 0; --j) {
    const acc_t v = mine.value[j], distance = relu(tau[j]) - magnitude_of(v);
    const acc_t magnitude = relu(-distance);
    result.value[j] = narrow<scalar_t>(v < acc_t(0) ? -magnitude : magnitude);
    negative = shift_in_sign(negative, v);
    open = shift_in_sign(open, tau[j] + acc_t(0));  // -0 is not open
    passes = shift_in_sign(passes, distance);
  }
  store<V>(inside, static_cast<scalar_t*>(op.y) + e, result);
  if (op.mask == nullptr) return;
  const unsigned word = (passes & (negative | open)) << (8 * kNegative) | (passes & ~open)
                                                                              << (8 * kSoftThresholdActive);
  store_mask<V>(inside, op.mask, mask_bytes(op.numel), kSoftThresholdPlanes, e, word);
}

template <class scalar_t, int V>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    soft_threshold_kernel(const __grid_constant__ SoftThreshold op, const __grid_constant__ Axes over,
                          const __grid_constant__ int slots) {
  wait_for_previous();
  constexpr int kSlots = kElementwiseSlots<V, 1>;
  const scalar_t* x = static_cast<const scalar_t*>(op.x);
  const int64_t whole = whole_vectors<V>(op.numel);
  const int64_t base = (int64_t(blockIdx.x) * slots * kThreads + threadIdx.x) * V;
  Packed<scalar_t, V> values[kSlots];
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int64_t e = base + i * kThreads * V;
    values[i] = load<V>(i < slots && e < whole, x + e);
  }
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int64_t e = base + i * kThreads * V;
    if (i < slots) threshold<V>(op, over, e, e < whole, values[i]);
  }
  if constexpr (V > 1) {  // a cut-off vector, an element per thread
    if (blockIdx.x > 0 || whole == op.numel) return;
    const int64_t e = whole + threadIdx.x;
    threshold<1>(op, over, e, e < op.numel, load_if<1>(e < op.numel, x + e));
  }
}

// The direction of z, 0 for 0.
template <class real_t, class complex_t>
__device__ __forceinline__ complex_t direction(complex_t z, real_t radius) {
  if (radius == real_t(0)) return z;
  return {z.x / radius, z.y / radius};
}

template <class real_t, class complex_t>
__global__ void __launch_bounds__(kThreads, kFewBlocks)
    soft_threshold_complex(const __grid_constant__ SoftThreshold op, const __grid_constant__ Axes over) {
  wait_for_previous();
  const int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= op.numel) return;
  const complex_t z = static_cast<const complex_t*>(op.x)[e];
  const real_t tau = op.tau == nullptr ? real_t(op.value) : static_cast<const real_t*>(op.tau)[over.locate(e).offset];
  const real_t radius = hypot(z.x, z.y);
  const complex_t u = direction(z, radius);
  const real_t magnitude = relu(radius - relu(tau));
  static_cast<complex_t*>(op.y)[e] = {u.x * magnitude, u.y * magnitude};
}

template <class real_t, class complex_t>
struct ComplexBackward {
  using scalar_t = real_t;
  static constexpr int kVector = 1;
  static constexpr int kSums = 1;
  static constexpr int kTensors = 2;
  using Row = NoRow;
  struct Item {
    complex_t g, z;
    real_t tau;
  };

  const complex_t* grad;
  const complex_t* x;
  complex_t* dx;
  const real_t* tau;
  real_t value;
  Axes over;

  template <class left_t>
  __device__ __forceinline__ Item load(const Row&, int64_t, int64_t element, left_t left) const {
    if (left <= 0) return {};
    return {grad[element], x[element], tau == nullptr ? value : tau[over.locate(element).offset]};
  }
  template <class left_t>
  __device__ __forceinline__ void add(const Row&, int64_t, int64_t element, left_t left, const Item& item,
                                      real_t (&sums)[kSums][1]) const {
    if (left <= 0) return;
    const real_t tau = relu(item.tau);
    const real_t radius = hypot(item.z.x, item.z.y);
    complex_t passed{};
    if (radius > tau) {
      const complex_t u = direction(item.z, radius);
      const real_t along = u.x * item.g.x + u.y * item.g.y;
      const real_t ratio = tau / radius;
      passed = {(1 - ratio) * item.g.x + ratio * along * u.x, (1 - ratio) * item.g.y + ratio * along * u.y};
      if (!(item.tau < real_t(0))) sums[0][0] += along;
    }
    if (dx != nullptr) dx[element] = passed;
  }
};

// The sum for dtau. Without dtau all of x is one sum, which is not written.
Reduction reduction_of(const SoftThresholdBackward& op) {
  return Reduction(op.dtau != nullptr ? op.over : Broadcast{1, {op.numel}, {0}});
}

template <class real_t, class complex_t>
cudaError_t complex_backward(const SoftThresholdBackward& op, void* workspace, cudaStream_t stream) {
  const ComplexBackward<real_t, complex_t> backward{static_cast<const complex_t*>(op.grad),
                                                    static_cast<const complex_t*>(op.x),
                                                    static_cast<complex_t*>(op.dx),
                                                    static_cast<const real_t*>(op.tau),
                                                    real_t(op.value),
                                                    Axes(op.over)};
  return reduce(op.dtype, backward, reduction_of(op), {Target{op.dtau, true, -1}}, workspace, stream);
}

// True if Axes::read can take V elements at once.
bool vectors_fit(const Broadcast& over, int V) { return over.axes <= 1 || over.size[over.axes - 1] >= V; }

}  // namespace

cudaError_t soft_threshold(const SoftThreshold& op, cudaStream_t stream) {
  const Axes over(op.over);
  const int64_t complex_blocks = ceil_div(op.numel, kThreads);
  if (op.dtype == DType::kComplexFloat) {
    return launch(&soft_threshold_complex<float, float2>, complex_blocks, kThreads, stream, op, over);
  }
  if (op.dtype == DType::kComplexDouble) {
    return launch(&soft_threshold_complex<double, double2>, complex_blocks, kThreads, stream, op, over);
  }
  return dispatch(
      op.dtype, [&](int V) { return aligned(op.x, op.y) && (op.tau == nullptr || vectors_fit(op.over, V)); },
      [&](auto scalar, auto V) {
        const int slots = elementwise_slots(ceil_div(op.numel, V), kElementwiseSlots<V, 1>);
        return launch(&soft_threshold_kernel<decltype(scalar), V>, ceil_div(op.numel, kThreads * slots * V), kThreads,
                      stream, op, over, slots);
      });
}

int64_t soft_threshold_backward_workspace(const SoftThresholdBackward& op) {
  if (op.dtau == nullptr) return 0;
  return reduction_of(op).workspace_elements() * accumulator_bytes(op.dtype);
}

cudaError_t soft_threshold_backward(const SoftThresholdBackward& op, void* workspace, cudaStream_t stream) {
  const bool wide = op.tau_in_accumulator || op.dtype == DType::kComplexFloat || op.dtype == DType::kComplexDouble;
  if (op.dtype == DType::kComplexFloat) return complex_backward<float, float2>(op, workspace, stream);
  if (op.dtype == DType::kComplexDouble) return complex_backward<double, double2>(op, workspace, stream);
  const ActiveSumCall call{op.dtype,
                           op.grad,
                           MaskView(op.mask, op.numel, kSoftThresholdPlanes, true),
                           kSoftThresholdActive,
                           op.dx,
                           Target{op.dtau, wide, -1}};
  return active_sum(call, reduction_of(op), workspace, stream);
}

}  // namespace drsn::cuda
