// Registers the CPU backend with PyTorch's dispatcher.
#include <memory>

#include "../batch_norm_conv_operators.h"
#include "../gated_operators.h"
#include "backend.h"
#include "loops.h"

namespace {

using drsn::Tensor;

struct Cpu {
  struct Guard {
    explicit Guard(const Tensor&) {}
  };
  // Memory for one call. None for 0 bytes.
  class Scratch {
   public:
    Scratch(int64_t bytes, const Tensor&) : memory_(bytes > 0 ? new char[bytes] : nullptr) {}
    void* data() const { return memory_.get(); }

   private:
    std::unique_ptr<char[]> memory_;
  };
  static void soft_threshold(const drsn::SoftThreshold& p, const Tensor&) { drsn::cpu::soft_threshold(p); }
  static void soft_threshold_backward(const drsn::SoftThresholdBackward& p, const Tensor&) {
    drsn::cpu::soft_threshold_backward(p);
  }
  static void abs_mean(const drsn::AbsMean& p, const Tensor&) { drsn::cpu::abs_mean(p); }
  static void abs_mean_backward(const drsn::AbsMeanBackward& p, const Tensor&) { drsn::cpu::abs_mean_backward(p); }
  static void shrink(const drsn::Shrink& p, const Tensor&) { drsn::cpu::shrink(p); }
  static void shrink_backward(const drsn::ShrinkBackward& p, const Tensor&) { drsn::cpu::shrink_backward(p); }
  static void gated_shrink(const drsn::GatedShrink& p, const Tensor&) { drsn::cpu::gated_shrink(p); }
  static void gated_shrink_backward(const drsn::GatedShrinkBackward& p, const Tensor&) {
    drsn::cpu::gated_shrink_backward(p);
  }
  static void batch_norm_shrink(const drsn::BatchNormShrink& p, const Tensor&) { drsn::cpu::batch_norm_shrink(p); }
  static void batch_norm_shrink_backward(const drsn::BatchNormShrinkBackward& p, const Tensor&) {
    drsn::cpu::batch_norm_shrink_backward(p);
  }
  static void batch_norm_relu(const drsn::BatchNormRelu& p, const Tensor&) { drsn::cpu::batch_norm_relu(p); }
  static void batch_norm_relu_backward(const drsn::BatchNormReluBackward& p, const Tensor&) {
    drsn::cpu::batch_norm_relu_backward(p);
  }
  static void batch_norm_relu_conv(const drsn::BatchNormReluConv& p, const Tensor&) {
    drsn::cpu::batch_norm_relu_conv(p);
  }
  static void batch_norm_relu_conv_backward(const drsn::BatchNormReluConvBackward& p, const Tensor&) {
    drsn::cpu::batch_norm_relu_conv_backward(p);
  }
  static void residual_unit(const drsn::ResidualUnit& p, const Tensor&) { drsn::cpu::residual_unit(p); }
  static void convert(const drsn::Conversions& p, const Tensor&) { drsn::cpu::convert(p); }
};

std::string cpu_simd() { return drsn::cpu::simd_level(); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DRSN_NAMESPACE, CPU, m) {
  drsn::Operators<Cpu>::add_to(m);
  drsn::GatedOperators<Cpu>::add_to(m);
  drsn::BatchNormOperators<Cpu>::add_to(m);
  drsn::BatchNormConvOperators<Cpu>::add_to(m);
}

STABLE_TORCH_LIBRARY_IMPL(DRSN_NAMESPACE, CompositeExplicitAutograd, m) { m.impl("cpu_simd", TORCH_BOX(&cpu_simd)); }
