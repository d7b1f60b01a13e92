// The operators with a gate between mean and threshold, between dispatcher and kernels, once for every backend.
#pragma once

#include "operators.h"

namespace drsn {

inline std::string words(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

// A parameter as the kernels read it, contiguous and of the accumulator's type, whatever real type it has; it keeps the
// memory alive.
inline Optional parameter(const Optional& t, const Shape& shape, const Tensor& x, const std::string& name) {
  if (!t) return t;
  const Shape found = shape_of(*t);
  if (found != shape) throw std::invalid_argument(name + ": got shape " + words(found) + ", expected " + words(shape));
  if (t->device() != x.device())
    throw std::invalid_argument(name + ": got a tensor on another device than the input's");
  const ScalarType wide = accumulator_of(x.scalar_type());
  if (t->scalar_type() == wide && t->is_contiguous()) return t;
  Tensor copy = empty(shape, wide, *t);
  torch::stable::copy_(copy, *t);
  return copy;
}

// A normalisation's tensors. Statistics of a narrower type are brought up to date through a copy.
class NormTensors {
 public:
  Norm norm{};

  NormTensors(const std::string& owner, int64_t kind, double eps, const Optional& weight, const Optional& bias,
              int64_t features, const Tensor& x)
      : owner_(owner),
        features_(features),
        weight_(parameter(weight, {features}, x, owner_ + "weight")),
        bias_(parameter(bias, {features}, x, owner_ + "bias")) {
    check(kind >= 0 && kind <= int64_t(NormKind::kRunning), "norm: expected a NormKind of params.h");
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
    check(momentum >= 0 || batches, "momentum: negative, the average over all batches, needs num_batches_tracked");
    if (!batches) return;
    check(batches->numel() == 1 && batches->scalar_type() == ScalarType::Long && batches->device() == x.device(),
          "num_batches_tracked: expected one int64 on the device of the input");
    norm.batches = static_cast<int64_t*>(batches->mutable_data_ptr());
  }

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
    check(mean.has_value() == var.has_value(), "running_mean, running_var: expected both or neither");
    mean_ = parameter(mean, {features_}, x, owner_ + "running_mean");
    var_ = parameter(var, {features_}, x, owner_ + "running_var");
    norm.running_mean = mean_ ? mean_->mutable_data_ptr() : nullptr;
    norm.running_var = var_ ? var_->mutable_data_ptr() : nullptr;
  }

  std::string owner_;
  int64_t features_;
  Optional weight_, bias_, mean_, var_, given_mean_, given_var_;
};

// A gate's tensors, with what the kernels see of them.
struct GateTensors {
  int64_t channels, hidden, outputs;
  Optional w1, b1, w2, b2;
  NormTensors norm;

  GateTensors(const Tensor& x, const Tensor& given_w1, const Optional& given_b1, const Optional& norm_weight,
              const Optional& norm_bias, const Tensor& given_w2, const Optional& given_b2, int64_t kind, double eps)
      : channels(x.dim() >= 2 ? x.size(1) : 0),
        hidden(given_w1.dim() == 2 ? given_w1.size(0) : 0),
        outputs(given_w2.dim() == 2 ? given_w2.size(0) : 0),
        w1(parameter(given_w1, {hidden, channels}, x, "gate[0].weight")),
        b1(parameter(given_b1, {hidden}, x, "gate[0].bias")),
        w2(parameter(given_w2, {outputs, hidden}, x, "gate[3].weight")),
        b2(parameter(given_b2, {outputs}, x, "gate[3].bias")),
        norm("gate[1].", kind, eps, norm_weight, norm_bias, hidden, x) {
    check(outputs == 1 || outputs == channels, "gate[3].weight: expected 1 output or as many as channels");
  }

  Gate gate() const { return {hidden, outputs, data(w1), data(b1), data(w2), data(b2), norm.norm}; }

  // Without statistics that outlive a sample there is nothing behind alpha.
  int64_t state_size(int64_t samples) const {
    const GateState state{samples, hidden, outputs};
    const NormKind kind = norm.norm.kind;
    return kind == NormKind::kBatch || kind == NormKind::kRunning ? state.size() : state.norm_mean_at();
  }

  // The gradients of (w1, b1, norm weight, norm bias, w2, b2); empty where not wanted or without a parameter.
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

inline void* pointer_or_null(const Tensor& t) { return t.numel() > 0 ? t.mutable_data_ptr() : nullptr; }

template <class Backend>
struct GatedOperators {
  using Gradients = std::vector<Tensor>;

  // Fills in what both operators share, allocates mean and state, and runs.
  static std::tuple<Tensor, Tensor> run(GatedShrink p, const Tensor& x, const GateTensors& gate, Optional residual,
                                        const Tensor& y, bool channels_last) {
    const ScalarType type = x.scalar_type(), wide = accumulator_of(type);
    if (residual) {
      check(shape_of(*residual) == shape_of(x) && residual->scalar_type() == type,
            "residual: expected the shape and type of x");
      residual = laid_out(*residual, channels_last);
    }
    const Tensor mean = empty({p.rows.samples, p.rows.channels}, wide, x);
    const Tensor state = empty({gate.state_size(p.rows.samples)}, wide, x);
    p.dtype = dtype_of(type);
    p.x = data(x);
    p.residual = data(residual);
    p.y = y.mutable_data_ptr();
    p.gate = gate.gate();
    p.mean = mean.mutable_data_ptr();
    p.state = state.mutable_data_ptr();
    check(p.rows.numel() > 0 && gate.hidden > 0, "x: expected at least one element, and the gate a hidden feature");
    Backend::gated_shrink(p, x);
    return {mean, state};
  }

  // y, mean, state and, where wanted, the code. The result goes into x where `inplace`.
  static std::tuple<Tensor, Tensor, Tensor, Tensor> run_gated_shrink(Tensor x, const GateTensors& gate,
                                                                     const Optional& residual, bool per_sample,
                                                                     bool inplace, bool with_code) {
    GatedShrink p{};
    p.rows = rows_of(shape_of(x), is_channels_last(x));
    p.per_sample = per_sample;
    const bool channels_last = p.rows.channels_last;
    if (inplace) check(lies_in(x, channels_last), "x: to be overwritten it has to be contiguous or channels_last");
    x = laid_out(x, channels_last);
    const Tensor y = inplace ? empty({0}, x.scalar_type(), x) : empty(shape_of(x), x.scalar_type(), x, channels_last);
    const Tensor code = with_code ? empty_code(p.rows, kShrinkPlanes, x) : empty({0}, ScalarType::Byte, x);
    if (with_code) p.code = bytes(code);
    const auto [mean, state] = run(p, x, gate, residual, inplace ? x : y, channels_last);
    return {y, mean, state, code};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> gated_shrink_with_code(
      Tensor x, Optional residual, Tensor w1, Optional b1, Optional norm_weight, Optional norm_bias, Tensor w2,
      Optional b2, Optional running_mean, Optional running_var, int64_t gate_norm, double eps, bool per_sample) {
    const typename Backend::Guard guard(x);
    GateTensors gate(x, w1, b1, norm_weight, norm_bias, w2, b2, gate_norm, eps);
    gate.norm.read_running(running_mean, running_var, x);
    return run_gated_shrink(x, gate, residual, per_sample, false, true);
  }

  static Tensor gated_shrink(Tensor x, Optional residual, Tensor w1, Optional b1, Optional norm_weight,
                             Optional norm_bias, Tensor w2, Optional b2, Optional running_mean, Optional running_var,
                             int64_t gate_norm, double eps, bool per_sample) {
    const typename Backend::Guard guard(x);
    GateTensors gate(x, w1, b1, norm_weight, norm_bias, w2, b2, gate_norm, eps);
    gate.norm.read_running(running_mean, running_var, x);
    return std::get<0>(run_gated_shrink(x, gate, residual, per_sample, false, false));
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> gated_shrink_(Tensor x, Optional residual, Tensor w1, Optional b1,
                                                                  Optional norm_weight, Optional norm_bias, Tensor w2,
                                                                  Optional b2, Optional running_mean,
                                                                  Optional running_var, Optional batches,
                                                                  double momentum, int64_t gate_norm, double eps,
                                                                  bool per_sample, bool inplace, bool with_code) {
    const typename Backend::Guard guard(x);
    GateTensors gate(x, w1, b1, norm_weight, norm_bias, w2, b2, gate_norm, eps);
    gate.norm.write_running(running_mean, running_var, batches, momentum, x);
    auto result = run_gated_shrink(x, gate, residual, per_sample, inplace, with_code);
    gate.norm.finish();
    return result;
  }

  // What the backward passes of both operators share; `p` has what is their own.
  static Gradients run_backward(GatedShrinkBackward p, const Tensor& grad, const GateTensors& gate, const Tensor& mean,
                                const Tensor& state, bool need_gate) {
    const ScalarType type = grad.scalar_type(), wide = accumulator_of(type);
    check(shape_of(mean) == Shape{p.rows.samples, p.rows.channels} && mean.scalar_type() == wide,
          "mean: expected (N, C) of the accumulator's type");
    check(state.numel() == gate.state_size(p.rows.samples) && state.scalar_type() == wide,
          "state: belongs to another gate");
    const Gradients found = gate.gradients(need_gate, wide, grad);
    p.dtype = dtype_of(type);
    p.grad = data(grad);
    p.gate = gate.gate();
    p.mean = data(mean);
    p.state = data(state);
    p.dw1 = pointer_or_null(found[0]);
    p.db1 = pointer_or_null(found[1]);
    p.dnorm_weight = pointer_or_null(found[2]);
    p.dnorm_bias = pointer_or_null(found[3]);
    p.dw2 = pointer_or_null(found[4]);
    p.db2 = pointer_or_null(found[5]);
    check(p.rows.numel() > 0 && gate.hidden > 0, "grad: expected at least one element, and the gate a hidden feature");
    Backend::gated_shrink_backward(p, grad);
    return found;
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_shrink_backward(
      Tensor grad, Optional grad_mean, Tensor code, Tensor mean, Tensor state, Tensor w1, Optional b1,
      Optional norm_weight, Optional norm_bias, Tensor w2, Optional b2, int64_t gate_norm, double eps, bool per_sample,
      bool channels_last, bool need_x, bool need_gate) {
    const typename Backend::Guard guard(grad);
    const ScalarType type = grad.scalar_type();
    const Shape shape = shape_of(grad);
    GatedShrinkBackward p{};
    p.rows = rows_of(shape, channels_last);
    p.per_sample = per_sample;
    const GateTensors gate(grad, w1, b1, norm_weight, norm_bias, w2, b2, gate_norm, eps);
    grad = laid_out(grad, channels_last);
    if (grad_mean) grad_mean = laid_out(*grad_mean, false);
    check(code.numel() == kShrinkPlanes * p.rows.segments() * code_bytes(p.rows.segment_length()),
          "code: belongs to an x of another shape");
    const Tensor dx = empty(need_x ? shape : Shape{0}, type, grad, need_x && channels_last);
    p.grad_mean = data(grad_mean);
    p.code = bytes(code);
    p.dx = pointer_or_null(dx);
    const Gradients g = run_backward(p, grad, gate, mean, state, need_gate);
    return {dx, g[0], g[1], g[2], g[3], g[4], g[5]};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> run_batch_norm_shrink(Tensor z, const NormTensors& input,
                                                                          const GateTensors& gate,
                                                                          const Optional& residual, bool per_sample) {
    const ScalarType wide = accumulator_of(z.scalar_type());
    GatedShrink p{};
    p.rows = rows_of(shape_of(z), false);
    p.per_sample = per_sample;
    p.input = input.norm;
    z = laid_out(z, false);
    const Tensor y = empty(shape_of(z), z.scalar_type(), z);
    const Tensor input_state = empty({2, p.rows.channels}, wide, z);
    p.input_state = input_state.mutable_data_ptr();
    const auto [mean, state] = run(p, z, gate, residual, y, false);
    return {y, mean, state, input_state};
  }

  static void check_input_norm(int64_t kind) {
    check(kind == int64_t(NormKind::kBatch) || kind == int64_t(NormKind::kRunning),
          "input_norm: expected kBatch or kRunning");
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_shrink(
      Tensor z, Optional residual, Optional weight, Optional bias, Optional running_mean, Optional running_var,
      int64_t input_norm, double input_eps, Tensor w1, Optional b1, Optional norm_weight, Optional norm_bias, Tensor w2,
      Optional b2, Optional gate_running_mean, Optional gate_running_var, int64_t gate_norm, double eps,
      bool per_sample) {
    const typename Backend::Guard guard(z);
    check_input_norm(input_norm);
    check(z.dim() >= 2, "z: expected (N, C, *spatial)");
    NormTensors input("batch_norm.", input_norm, input_eps, weight, bias, z.size(1), z);
    input.read_running(running_mean, running_var, z);
    GateTensors gate(z, w1, b1, norm_weight, norm_bias, w2, b2, gate_norm, eps);
    gate.norm.read_running(gate_running_mean, gate_running_var, z);
    return run_batch_norm_shrink(z, input, gate, residual, per_sample);
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_shrink_(
      Tensor z, Optional residual, Optional weight, Optional bias, Optional running_mean, Optional running_var,
      Optional batches, double momentum, int64_t input_norm, double input_eps, Tensor w1, Optional b1,
      Optional norm_weight, Optional norm_bias, Tensor w2, Optional b2, Optional gate_running_mean,
      Optional gate_running_var, Optional gate_batches, double gate_momentum, int64_t gate_norm, double eps,
      bool per_sample) {
    const typename Backend::Guard guard(z);
    check_input_norm(input_norm);
    check(z.dim() >= 2, "z: expected (N, C, *spatial)");
    NormTensors input("batch_norm.", input_norm, input_eps, weight, bias, z.size(1), z);
    input.write_running(running_mean, running_var, batches, momentum, z);
    GateTensors gate(z, w1, b1, norm_weight, norm_bias, w2, b2, gate_norm, eps);
    gate.norm.write_running(gate_running_mean, gate_running_var, gate_batches, gate_momentum, z);
    auto result = run_batch_norm_shrink(z, input, gate, residual, per_sample);
    input.finish();
    gate.norm.finish();
    return result;
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_shrink_backward(
      Tensor grad, Tensor z, Optional weight, Optional bias, int64_t input_norm, Tensor mean, Tensor state,
      Tensor input_state, Tensor w1, Optional b1, Optional norm_weight, Optional norm_bias, Tensor w2, Optional b2,
      int64_t gate_norm, double eps, bool per_sample, bool need_z, bool need_parameters) {
    const typename Backend::Guard guard(grad);
    const ScalarType type = grad.scalar_type(), wide = accumulator_of(type);
    const Shape shape = shape_of(grad);
    GatedShrinkBackward p{};
    p.rows = rows_of(shape, false);
    p.per_sample = per_sample;
    check_input_norm(input_norm);
    const NormTensors input("batch_norm.", input_norm, 0, weight, bias, p.rows.channels, grad);
    const GateTensors gate(grad, w1, b1, norm_weight, norm_bias, w2, b2, gate_norm, eps);
    check(shape_of(z) == shape && z.scalar_type() == type, "z: expected the shape and type of grad");
    check(shape_of(input_state) == Shape{2, p.rows.channels} && input_state.scalar_type() == wide,
          "input_state: expected (2, C) of the accumulator's type");
    grad = laid_out(grad, false);
    z = laid_out(z, false);
    const auto one = [&](bool wanted) { return empty({wanted ? p.rows.channels : 0}, wide, grad); };
    const Tensor dz = empty(need_z ? shape : Shape{0}, type, grad);
    const Tensor dweight = one(need_parameters && weight), dbias = one(need_parameters && bias);
    p.z = data(z);
    p.input = input.norm;
    p.input_state = data(input_state);
    p.dx = pointer_or_null(dz);
    p.dinput_weight = pointer_or_null(dweight);
    p.dinput_bias = pointer_or_null(dbias);
    const Gradients g = run_backward(p, grad, gate, mean, state, need_parameters);
    return {dz, dweight, dbias, g[0], g[1], g[2], g[3], g[4], g[5]};
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("gated_shrink", TORCH_BOX(&gated_shrink));
    m.impl("gated_shrink_with_code", TORCH_BOX(&gated_shrink_with_code));
    m.impl("gated_shrink_", TORCH_BOX(&gated_shrink_));
    m.impl("gated_shrink_backward", TORCH_BOX(&gated_shrink_backward));
    m.impl("batch_norm_shrink", TORCH_BOX(&batch_norm_shrink));
    m.impl("batch_norm_shrink_", TORCH_BOX(&batch_norm_shrink_));
    m.impl("batch_norm_shrink_backward", TORCH_BOX(&batch_norm_shrink_backward));
  }
};

}  // namespace drsn
