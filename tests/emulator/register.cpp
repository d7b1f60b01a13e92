// Registers the emulated CUDA kernels as those of the CPU: csrc/cuda/register.cpp with the host's memory, and without
// streams and devices.
#include "../../csrc/batch_norm_operators.h"
#include "../../csrc/gated_operators.h"

namespace torch::stable::accelerator {
struct NoDeviceGuard {
  explicit NoDeviceGuard(DeviceIndex) {}
};
}  // namespace torch::stable::accelerator

static AOTITorchError no_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

#define CUDA CPU
#define DeviceGuard NoDeviceGuard
#define aoti_torch_get_current_cuda_stream no_stream
#include "../../csrc/cuda/register.cpp"

namespace {
std::string cpu_simd() { return "default"; }
}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DRSN_NAMESPACE, CompositeExplicitAutograd, m) { m.impl("cpu_simd", TORCH_BOX(&cpu_simd)); }
