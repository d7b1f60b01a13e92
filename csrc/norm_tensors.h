// The tensors of a normalisation: checked, laid out, and as params.h describes them to the kernels.
#pragma once

#include "wide_tensors.h"

namespace drsn {

// The rows of a tensor that must have elements.
inline Rows rows_with_elements(const char* name, const Tensor& x, bool channels_last) {
  const Rows rows = rows_of(name, shape_of(x), channels_last);
  if (rows.numel() == 0) refuse(name, "shape " + words(shape_of(x)), "at least one element");
  return rows;
}

// The names of a normalisation's arguments for error messages: in the schemas, and in a user's modules.
struct NormNames {
  const char *kind, *weight, *bias, *mean, *var, *batches, *momentum;
  NormKind first;  // it may have this kind and those after it
};
inline constexpr NormNames kGateNorm{"gate_norm",
                                     "norm_weight (gate[1].weight)",
                                     "norm_bias (gate[1].bias)",
                                     "running_mean (gate[1].running_mean)",
                                     "running_var (gate[1].running_var)",
                                     "batches (gate[1].num_batches_tracked)",
                                     "momentum (gate[1].momentum)",
                                     NormKind::kNone};
// The same in batch_norm_shrink, where the input's normalisation has the shorter names.
inline constexpr NormNames kSecondGateNorm{kGateNorm.kind,
                                           kGateNorm.weight,
                                           kGateNorm.bias,
                                           "gate_running_mean (gate[1].running_mean)",
                                           "gate_running_var (gate[1].running_var)",
                                           "gate_batches (gate[1].num_batches_tracked)",
                                           "gate_momentum (gate[1].momentum)",
                                           kGateNorm.first};
inline constexpr NormNames kInputNorm{"input_norm",
                                      "weight (batch_norm.weight)",
                                      "bias (batch_norm.bias)",
                                      "running_mean (batch_norm.running_mean)",
                                      "running_var (batch_norm.running_var)",
                                      "batches (batch_norm.num_batches_tracked)",
                                      "momentum (batch_norm.momentum)",
                                      NormKind::kBatch};

// The same in batch_norm_relu.
inline constexpr NormNames kOnlyNorm{"norm",         kInputNorm.weight,  kInputNorm.bias,     kInputNorm.mean,
                                     kInputNorm.var, kInputNorm.batches, kInputNorm.momentum, kInputNorm.first};

// A normalisation's tensors, and where their numbers are. Its argument tensors have to outlive it.
class NormTensors {
 public:
  WideTensors& wide;
  Norm norm{};

  NormTensors(WideTensors& wide, const NormNames& names, int64_t kind, double eps, const Optional& weight,
              const Optional& bias, int64_t features)
      : wide(wide), names_(names), features_(features), weight_(weight), bias_(bias) {
    wide.reads(names.weight, weight, {features}, norm.weight);
    wide.reads(names.bias, bias, {features}, norm.bias);
    if (kind < int64_t(names.first) || kind > int64_t(NormKind::kRunning))
      refuse(names.kind, std::to_string(kind), "a NormKind of params.h that it may have");
    norm.kind = NormKind(kind);
    norm.eps = eps;
  }
  NormTensors(const NormTensors&) = delete;

  void read_running(const Optional& mean, const Optional& var) {
    if (norm.kind == NormKind::kRunning) take_running(mean, var);
  }

  void write_running(const Optional& mean, const Optional& var, const Optional& batches, double momentum) {
    take_running(mean, var);
    if (!updates()) return;
    norm.momentum = momentum;
    if (!batches) {
      if (!(momentum >= 0))
        refuse(names_.momentum, std::to_string(momentum), "a number >= 0 without num_batches_tracked");
      return;
    }
    if (batches->numel() != 1 || batches->scalar_type() != ScalarType::Long || !same_device(*batches, wide.like))
      refuse(names_.batches, words(*batches), "one int64 on " + device_words(wide.like));
    norm.batches = static_cast<int64_t*>(batches->mutable_data_ptr());
  }

  // The kernel writes running statistics and counts batches.
  bool updates() const { return norm.kind == NormKind::kBatch; }

  // Memory for the gradients of weight and bias.
  std::pair<Tensor, Tensor> gradients(bool wanted, void*& dweight, void*& dbias) const {
    return {wide.gradient(wanted, weight_, dweight), wide.gradient(wanted, bias_, dbias)};
  }

 private:
  void take_running(const Optional& mean, const Optional& var) {
    if (mean.has_value() != var.has_value())
      refuse(mean ? names_.var : names_.mean, "None", "both statistics or neither");
    wide.updates(names_.mean, mean, {features_}, updates(), norm.running_mean);
    wide.updates(names_.var, var, {features_}, updates(), norm.running_var);
  }

  const NormNames& names_;
  int64_t features_;
  const Optional &weight_, &bias_;
};

}  // namespace drsn
