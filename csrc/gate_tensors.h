// The tensors of a gate: checked, laid out, and as params.h describes them to the kernels.
#pragma once

#include "norm_tensors.h"

namespace drsn {

// The number of outputs of a linear layer.
inline int64_t features_of(const char* name, const Tensor& weight, const char* shape) {
  if (weight.dim() != 2 || weight.size(0) == 0) refuse(name, words(weight), std::string("shape ") + shape);
  return weight.size(0);
}

struct GateTensors {
  int64_t channels, hidden, outputs;
  Optional w1, b1, w2, b2;
  NormTensors norm;

  GateTensors(const Tensor& x, const Tensor& given_w1, const Optional& given_b1, const Optional& norm_weight,
              const Optional& norm_bias, const Tensor& given_w2, const Optional& given_b2, int64_t kind, double eps,
              const NormNames& names = kGateNorm)
      : channels(x.size(1)),
        hidden(features_of("w1 (gate[0].weight)", given_w1, "(at least 1, C)")),
        outputs(features_of("w2 (gate[3].weight)", given_w2, "(C or 1, H)")),
        w1(parameter("w1 (gate[0].weight)", given_w1, {hidden, channels}, x)),
        b1(parameter("b1 (gate[0].bias)", given_b1, {hidden}, x)),
        w2(parameter("w2 (gate[3].weight)", given_w2, {outputs, hidden}, x)),
        b2(parameter("b2 (gate[3].bias)", given_b2, {outputs}, x)),
        norm(names, kind, eps, norm_weight, norm_bias, hidden, x) {
    if (outputs != 1 && outputs != channels)
      refuse("w2 (gate[3].weight)", words(given_w2), "1 output or as many as channels, " + std::to_string(channels));
  }

  Gate gate() const { return {hidden, outputs, data(w1), data(b1), data(w2), data(b2), norm.norm}; }

  // Norms over a sample keep no statistics.
  int64_t state_size(int64_t samples) const {
    const GateState state{samples, hidden, outputs};
    const NormKind kind = norm.norm.kind;
    return kind == NormKind::kBatch || kind == NormKind::kRunning ? state.size() : state.norm_mean_at();
  }

  // Memory for the gradients of (w1, b1, norm weight, norm bias, w2, b2); empty where not wanted or without a
  // parameter.
  std::vector<Tensor> gradients(bool wanted, ScalarType wide, const Tensor& like) const {
    const auto one = [&](bool there, const Shape& shape) { return empty(there ? shape : Shape{0}, wide, like); };
    return {one(wanted, {hidden, channels}),
            one(wanted && b1, {hidden}),
            one(wanted && norm.norm.weight, {hidden}),
            one(wanted && norm.norm.bias, {hidden}),
            one(wanted, {outputs, hidden}),
            one(wanted && b2, {outputs})};
  }
};

}  // namespace drsn
