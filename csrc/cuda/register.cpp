// From the dispatcher to backend.h: device, stream, scratch memory. The kernels include no torch header.
#include "../batch_norm_operators.h"
#include "../gated_operators.h"
#include "backend.h"

namespace {

using drsn::Tensor;

cudaStream_t stream_of(const Tensor& t) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error("drsn_ops: PyTorch has no current stream for the device of the tensor");
  }
  return static_cast<cudaStream_t>(stream);
}

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("drsn_ops: ") + cudaGetErrorString(error));
}

// Memory from PyTorch's caching allocator, for the current stream; safe to capture in a graph. None for 0 bytes.
class Scratch {
 public:
  Scratch(int64_t bytes, const Tensor& like) {
    if (bytes > 0) memory_ = drsn::empty({bytes}, torch::headeronly::ScalarType::Byte, like);
  }
  void* data() const { return memory_ ? memory_->mutable_data_ptr() : nullptr; }

 private:
  std::optional<Tensor> memory_;
};

struct Cuda {
  using Scratch = ::Scratch;
  struct Guard {
    // Without it the kernels would run on the current device, which may not be the tensors'.
    torch::stable::accelerator::DeviceGuard guard;
    explicit Guard(const Tensor& t) : guard(t.get_device_index()) {}
  };

  static void soft_threshold(const drsn::SoftThreshold& p, const Tensor& t) {
    check(drsn::cuda::soft_threshold(p, stream_of(t)));
  }
  static void soft_threshold_backward(const drsn::SoftThresholdBackward& p, const Tensor& t) {
    const Scratch memory(drsn::cuda::soft_threshold_backward_workspace(p), t);
    check(drsn::cuda::soft_threshold_backward(p, memory.data(), stream_of(t)));
  }
  static void abs_mean(const drsn::AbsMean& p, const Tensor& t) {
    const Scratch memory(drsn::cuda::abs_mean_workspace(p), t);
    check(drsn::cuda::abs_mean(p, memory.data(), stream_of(t)));
  }
  static void abs_mean_backward(const drsn::AbsMeanBackward& p, const Tensor& t) {
    check(drsn::cuda::abs_mean_backward(p, stream_of(t)));
  }
  static void shrink(const drsn::Shrink& p, const Tensor& t) {
    const Scratch memory(drsn::cuda::shrink_workspace(p), t);
    check(drsn::cuda::shrink(p, memory.data(), stream_of(t)));
  }
  static void shrink_backward(const drsn::ShrinkBackward& p, const Tensor& t) {
    const Scratch memory(drsn::cuda::shrink_backward_workspace(p), t);
    check(drsn::cuda::shrink_backward(p, memory.data(), stream_of(t)));
  }
  static void gated_shrink(const drsn::GatedShrink& p, const Tensor& t) {
    const Scratch memory(drsn::cuda::gated_shrink_workspace(p), t);
    check(drsn::cuda::gated_shrink(p, memory.data(), stream_of(t)));
  }
  static void gated_shrink_backward(const drsn::GatedShrinkBackward& p, const Tensor& t) {
    const Scratch memory(drsn::cuda::gated_shrink_backward_workspace(p), t);
    check(drsn::cuda::gated_shrink_backward(p, memory.data(), stream_of(t)));
  }
  static void batch_norm_shrink(const drsn::BatchNormShrink& p, const Tensor& t) {
    const Scratch memory(drsn::cuda::batch_norm_shrink_workspace(p), t);
    check(drsn::cuda::batch_norm_shrink(p, memory.data(), stream_of(t)));
  }
  static void batch_norm_shrink_backward(const drsn::BatchNormShrinkBackward& p, const Tensor& t) {
    const Scratch memory(drsn::cuda::batch_norm_shrink_backward_workspace(p), t);
    check(drsn::cuda::batch_norm_shrink_backward(p, memory.data(), stream_of(t)));
  }
  static void batch_norm_relu(const drsn::BatchNormRelu& p, const Tensor& t) {
    const Scratch memory(drsn::cuda::batch_norm_relu_workspace(p), t);
    check(drsn::cuda::batch_norm_relu(p, memory.data(), stream_of(t)));
  }
  static void batch_norm_relu_backward(const drsn::BatchNormReluBackward& p, const Tensor& t) {
    const Scratch memory(drsn::cuda::batch_norm_relu_backward_workspace(p), t);
    check(drsn::cuda::batch_norm_relu_backward(p, memory.data(), stream_of(t)));
  }
  static void convert(const drsn::Conversions& p, const Tensor& t) { check(drsn::cuda::convert(p, stream_of(t))); }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DRSN_NAMESPACE, CUDA, m) {
  drsn::Operators<Cuda>::add_to(m);
  drsn::GatedOperators<Cuda>::add_to(m);
  drsn::BatchNormOperators<Cuda>::add_to(m);
}
