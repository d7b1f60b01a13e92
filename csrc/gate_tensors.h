// The tensors of a gate: checked, laid out, and as params.h describes them to the kernels.
#pragma once

#include "norm_tensors.h"

namespace drsn {

// The number of outputs of a linear layer.
inline int64_t features_of(const char* name, const Tensor& weight, const char* shape) {
  if (weight.dim() != 2 || weight.size(0) == 0) refuse(name, words(weight), std::string("shape ") + shape);
  return weight.size(0);
}

// As NormTensors.
struct GateTensors {
  WideTensors& wide;
  int64_t hidden, outputs;
  NormTensors norm;

  GateTensors(WideTensors& wide, int64_t channels, const Tensor& w1, const Optional& b1, const Optional& norm_weight,
              const Optional& norm_bias, const Tensor& w2, const Optional& b2, int64_t kind, double eps,
              const NormNames& names = kGateNorm)
      : wide(wide),
        hidden(features_of("w1 (gate[0].weight)", w1, "(at least 1, C)")),
        outputs(features_of("w2 (gate[3].weight)", w2, "(C or 1, H)")),
        norm(wide, names, kind, eps, norm_weight, norm_bias, hidden),
        w1_(w1),
        w2_(w2),
        b1_(b1),
        b2_(b2) {
    wide.reads("w1 (gate[0].weight)", w1, {hidden, channels}, wide_w1_);
    wide.reads("b1 (gate[0].bias)", b1, {hidden}, wide_b1_);
    wide.reads("w2 (gate[3].weight)", w2, {outputs, hidden}, wide_w2_);
    wide.reads("b2 (gate[3].bias)", b2, {outputs}, wide_b2_);
    if (outputs != 1 && outputs != channels)
      refuse("w2 (gate[3].weight)", words(w2), "1 output or as many as channels, " + std::to_string(channels));
  }

  // Once the tensors are wide.
  Gate gate() const { return {hidden, outputs, wide_w1_, wide_b1_, wide_w2_, wide_b2_, norm.norm}; }

  // Norms over a sample keep no statistics.
  int64_t state_size(int64_t samples) const {
    const GateState state{samples, hidden, outputs};
    const NormKind kind = norm.norm.kind;
    return kind == NormKind::kBatch || kind == NormKind::kRunning ? state.size() : state.norm_mean_at();
  }

  // Memory for the gradients of (w1, b1, norm weight, norm bias, w2, b2).
  std::vector<Tensor> gradients(bool wanted, GatedShrinkBackward& p) const {
    const Tensor dw1 = wide.gradient(wanted, w1_, p.dw1), db1 = wide.gradient(wanted, b1_, p.db1);
    const auto [dweight, dbias] = norm.gradients(wanted, p.dnorm_weight, p.dnorm_bias);
    return {dw1, db1, dweight, dbias, wide.gradient(wanted, w2_, p.dw2), wide.gradient(wanted, b2_, p.db2)};
  }

 private:
  const Tensor &w1_, &w2_;
  const Optional &b1_, &b2_;
  const void *wide_w1_ = nullptr, *wide_b1_ = nullptr, *wide_w2_ = nullptr, *wide_b2_ = nullptr;
};

}  // namespace drsn
