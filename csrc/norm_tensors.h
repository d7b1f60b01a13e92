// The tensors of a normalisation: checked, laid out, and as params.h describes them to the kernels.
#pragma once

#include "operators.h"

namespace drsn {

// The rows of a tensor that must have elements.
inline Rows rows_with_elements(const char* name, const Tensor& x, bool channels_last) {
  const Rows rows = rows_of(name, shape_of(x), channels_last);
  if (rows.numel() == 0) refuse(name, "shape " + words(shape_of(x)), "at least one element");
  return rows;
}

// A parameter of any real type as the kernels read it: contiguous, of the accumulator's type.
inline Optional parameter(const char* name, const Optional& t, const Shape& shape, const Tensor& x) {
  if (!t) return t;
  const ScalarType type = t->scalar_type(), wide = accumulator_of(x.scalar_type());
  dtype_of(name, type);
  check_tensor(name, *t, shape, type, x);
  if (type == wide) return laid_out(*t, false);
  Tensor copy = empty(shape, wide, *t);
  torch::stable::copy_(copy, *t);
  return copy;
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

// A normalisation's tensors. Running statistics of a narrower type are updated through a copy.
class NormTensors {
 public:
  Norm norm{};

  NormTensors(const NormNames& names, int64_t kind, double eps, const Optional& weight, const Optional& bias,
              int64_t features, const Tensor& x)
      : names_(names),
        features_(features),
        weight_(parameter(names.weight, weight, {features}, x)),
        bias_(parameter(names.bias, bias, {features}, x)) {
    if (kind < int64_t(names.first) || kind > int64_t(NormKind::kRunning))
      refuse(names.kind, std::to_string(kind), "a NormKind of params.h that it may have");
    norm.kind = NormKind(kind);
    norm.eps = eps;
    norm.weight = data(weight_);
    norm.bias = data(bias_);
  }

  void read_running(const Optional& mean, const Optional& var, const Tensor& x) {
    if (norm.kind == NormKind::kRunning) take_running(mean, var, x);
  }

  void write_running(const Optional& mean, const Optional& var, const Optional& batches, double momentum,
                     const Tensor& x) {
    take_running(mean, var, x);
    if (norm.kind != NormKind::kBatch) return;
    given_mean_ = mean;
    given_var_ = var;
    norm.momentum = momentum;
    if (!batches) {
      if (!(momentum >= 0))
        refuse(names_.momentum, std::to_string(momentum), "a number >= 0 without num_batches_tracked");
      return;
    }
    if (batches->numel() != 1 || batches->scalar_type() != ScalarType::Long || !same_device(*batches, x))
      refuse(names_.batches, words(*batches), "one int64 on " + device_words(x));
    norm.batches = static_cast<int64_t*>(batches->mutable_data_ptr());
  }

  // The kernel writes running statistics and counts batches.
  bool updates() const { return norm.kind == NormKind::kBatch; }

  // Copies running statistics back to where the caller's type is narrower.
  void finish() const {
    for (const auto& [given, used] : {std::pair(given_mean_, mean_), std::pair(given_var_, var_)}) {
      if (given && given->const_data_ptr() != used->const_data_ptr()) {
        Tensor target = *given;
        torch::stable::copy_(target, *used);
      }
    }
  }

 private:
  void take_running(const Optional& mean, const Optional& var, const Tensor& x) {
    if (mean.has_value() != var.has_value())
      refuse(mean ? names_.var : names_.mean, "None", "both statistics or neither");
    mean_ = parameter(names_.mean, mean, {features_}, x);
    var_ = parameter(names_.var, var, {features_}, x);
    norm.running_mean = mean_ ? mean_->mutable_data_ptr() : nullptr;
    norm.running_var = var_ ? var_->mutable_data_ptr() : nullptr;
  }

  const NormNames& names_;
  int64_t features_;
  Optional weight_, bias_, mean_, var_, given_mean_, given_var_;
};

}  // namespace drsn
