// The host side of the operators with a gate between mean and threshold, once for every backend.
#pragma once

#include "gate_tensors.h"

namespace drsn {

template <class Backend>
struct GatedOperators {
  using Gradients = std::vector<Tensor>;

  // Fills in type and sizes from the first tensor, which must have elements.
  template <class Parameters>
  static Parameters prepared(const char* name, const Tensor& x, bool per_sample, bool channels_last) {
    Parameters p{};
    p.dtype = dtype_of(name, x.scalar_type());
    p.rows = rows_with_elements(name, x, channels_last);
    p.per_sample = per_sample;
    return p;
  }

  // Fills in what both operators share, once the tensors are wide; returns mean and state.
  static std::tuple<Tensor, Tensor> fill_forward(GatedShrink& p, const Tensor& x, const GateTensors& gate,
                                                 const Optional& residual, const Tensor& y) {
    const ScalarType wide = accumulator_of(x.scalar_type());
    const Tensor mean = empty({p.rows.samples, p.rows.channels}, wide, x);
    const Tensor state = empty({gate.state_size(p.rows.samples)}, wide, x);
    p.x = data(x);
    p.residual = data(residual);
    p.y = y.mutable_data_ptr();
    p.gate = gate.gate();
    p.mean = mean.mutable_data_ptr();
    p.state = state.mutable_data_ptr();
    return {mean, state};
  }

  // Returns y, mean, state and, where wanted, the mask. Where `inplace` x is overwritten and y is empty.
  static std::tuple<Tensor, Tensor, Tensor, Tensor> run_gated_shrink(GatedShrink p, Tensor x, const GateTensors& gate,
                                                                     const Optional& residual, bool inplace,
                                                                     bool with_mask) {
    const bool channels_last = p.rows.channels_last;
    x = laid_out(x, channels_last);
    const Tensor y = inplace ? empty({0}, x.scalar_type(), x) : empty(shape_of(x), x.scalar_type(), x, channels_last);
    const Tensor mask = with_mask ? empty_mask(p.rows, kShrinkPlanes, x) : empty({0}, ScalarType::Byte, x);
    if (with_mask) p.mask = bytes(mask);
    gate.wide.template widen<Backend>();
    const auto [mean, state] = fill_forward(p, x, gate, residual, inplace ? x : y);
    Backend::gated_shrink(p, x);
    gate.wide.template narrow<Backend>();
    return {y, mean, state, mask};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> gated_shrink_with_mask(
      Tensor x, Optional residual, Tensor w1, Optional b1, Optional norm_weight, Optional norm_bias, Tensor w2,
      Optional b2, Optional running_mean, Optional running_var, int64_t gate_norm, double eps, bool per_sample) {
    return out_of_place(x, residual, w1, b1, norm_weight, norm_bias, w2, b2, running_mean, running_var, gate_norm, eps,
                        per_sample, true);
  }

  static Tensor gated_shrink(Tensor x, Optional residual, Tensor w1, Optional b1, Optional norm_weight,
                             Optional norm_bias, Tensor w2, Optional b2, Optional running_mean, Optional running_var,
                             int64_t gate_norm, double eps, bool per_sample) {
    return std::get<0>(out_of_place(x, residual, w1, b1, norm_weight, norm_bias, w2, b2, running_mean, running_var,
                                    gate_norm, eps, per_sample, false));
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> out_of_place(
      const Tensor& x, const Optional& residual, const Tensor& w1, const Optional& b1, const Optional& norm_weight,
      const Optional& norm_bias, const Tensor& w2, const Optional& b2, const Optional& running_mean,
      const Optional& running_var, int64_t gate_norm, double eps, bool per_sample, bool with_mask) {
    const typename Backend::Guard guard(x);
    const bool channels_last = is_channels_last(x);
    const auto p = prepared<GatedShrink>("x", x, per_sample, channels_last);
    WideTensors wide(x);
    GateTensors gate(wide, p.rows.channels, w1, b1, norm_weight, norm_bias, w2, b2, gate_norm, eps);
    gate.norm.read_running(running_mean, running_var);
    const Optional dense_residual = checked("residual", residual, shape_of(x), x.scalar_type(), x, channels_last);
    return run_gated_shrink(p, x, gate, dense_residual, false, with_mask);
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> gated_shrink_(Tensor x, Optional residual, Tensor w1, Optional b1,
                                                                  Optional norm_weight, Optional norm_bias, Tensor w2,
                                                                  Optional b2, Optional running_mean,
                                                                  Optional running_var, Optional batches,
                                                                  double momentum, int64_t gate_norm, double eps,
                                                                  bool per_sample, bool inplace, bool with_mask) {
    const typename Backend::Guard guard(x);
    const bool channels_last = is_channels_last(x);
    const auto p = prepared<GatedShrink>("x", x, per_sample, channels_last);
    if (inplace) check_overwritten(x, channels_last);
    WideTensors wide(x);
    GateTensors gate(wide, p.rows.channels, w1, b1, norm_weight, norm_bias, w2, b2, gate_norm, eps);
    gate.norm.write_running(running_mean, running_var, batches, momentum);
    residual = checked("residual", residual, shape_of(x), x.scalar_type(), x, channels_last);
    const Access updated = gate.norm.updates() ? Access::kWrites : Access::kReads;
    if (inplace || updated == Access::kWrites) {
      check_overlap({{"x", x, inplace ? Access::kWrites : Access::kReads},
                     {"residual", residual, Access::kReadsElement},
                     {"w1 (gate[0].weight)", w1, Access::kReads},
                     {"b1 (gate[0].bias)", b1, Access::kReads},
                     {kGateNorm.weight, norm_weight, Access::kReads},
                     {kGateNorm.bias, norm_bias, Access::kReads},
                     {"w2 (gate[3].weight)", w2, Access::kReads},
                     {"b2 (gate[3].bias)", b2, Access::kReads},
                     {kGateNorm.mean, running_mean, updated},
                     {kGateNorm.var, running_var, updated},
                     {kGateNorm.batches, batches, updated}});
    }
    return run_gated_shrink(p, x, gate, residual, inplace, with_mask);
  }

  // Fills in what both backward passes share, and makes the tensors wide; returns the gradients of the gate's
  // parameters.
  static Gradients fill_backward(GatedShrinkBackward& p, const Tensor& grad, const GateTensors& gate, Tensor& mean,
                                 Tensor& state, bool need_gate) {
    const ScalarType wide = accumulator_of(grad.scalar_type());
    mean = checked("mean", mean, shape_of_mean(p.rows, false), wide, grad);
    state = checked("state", state, {gate.state_size(p.rows.samples)}, wide, grad);
    const Gradients found = gate.gradients(need_gate, p);
    gate.wide.template widen<Backend>();
    p.grad = data(grad);
    p.gate = gate.gate();
    p.mean = data(mean);
    p.state = data(state);
    return found;
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_shrink_backward(
      Tensor grad, Optional grad_mean, Tensor mask, Tensor mean, Tensor state, Tensor w1, Optional b1,
      Optional norm_weight, Optional norm_bias, Tensor w2, Optional b2, int64_t gate_norm, double eps, bool per_sample,
      bool channels_last, bool need_x, bool need_gate) {
    const typename Backend::Guard guard(grad);
    const ScalarType type = grad.scalar_type();
    const Shape shape = shape_of(grad);
    auto p = prepared<GatedShrinkBackward>("grad", grad, per_sample, channels_last);
    WideTensors wide(grad);
    const GateTensors gate(wide, p.rows.channels, w1, b1, norm_weight, norm_bias, w2, b2, gate_norm, eps);
    grad = laid_out(grad, channels_last);
    grad_mean = checked("grad_mean", grad_mean, shape_of_mean(p.rows, false), accumulator_of(type), grad);
    mask = checked("mask", mask, shape_of_mask(p.rows, kShrinkPlanes), ScalarType::Byte, grad);
    const Tensor dx = empty(need_x ? shape : Shape{0}, type, grad, need_x && channels_last);
    p.grad_mean = data(grad_mean);
    p.mask = bytes(mask);
    p.dx = pointer_or_null(dx);
    const Gradients g = fill_backward(p, grad, gate, mean, state, need_gate);
    Backend::gated_shrink_backward(p, grad);
    wide.narrow<Backend>();
    return {dx, g[0], g[1], g[2], g[3], g[4], g[5]};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> run_batch_norm_shrink(BatchNormShrink p, Tensor z,
                                                                          const NormTensors& input,
                                                                          const GateTensors& gate, Optional residual) {
    const bool channels_last = p.rows.channels_last;
    residual = checked("residual", residual, shape_of(z), z.scalar_type(), z, channels_last);
    z = laid_out(z, channels_last);
    const Tensor y = empty(shape_of(z), z.scalar_type(), z, channels_last);
    const Tensor input_state = empty({2, p.rows.channels}, accumulator_of(z.scalar_type()), z);
    p.input_state = input_state.mutable_data_ptr();
    gate.wide.template widen<Backend>();
    p.input = input.norm;
    const auto [mean, state] = fill_forward(p, z, gate, residual, y);
    Backend::batch_norm_shrink(p, z);
    gate.wide.template narrow<Backend>();
    return {y, mean, state, input_state};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_shrink(
      Tensor z, Optional residual, Optional weight, Optional bias, Optional running_mean, Optional running_var,
      int64_t input_norm, double input_eps, Tensor w1, Optional b1, Optional norm_weight, Optional norm_bias, Tensor w2,
      Optional b2, Optional gate_running_mean, Optional gate_running_var, int64_t gate_norm, double eps,
      bool per_sample) {
    const typename Backend::Guard guard(z);
    const auto p = prepared<BatchNormShrink>("z", z, per_sample, is_channels_last(z));
    WideTensors wide(z);
    NormTensors input(wide, kInputNorm, input_norm, input_eps, weight, bias, p.rows.channels);
    input.read_running(running_mean, running_var);
    GateTensors gate(wide, p.rows.channels, w1, b1, norm_weight, norm_bias, w2, b2, gate_norm, eps, kSecondGateNorm);
    gate.norm.read_running(gate_running_mean, gate_running_var);
    return run_batch_norm_shrink(p, z, input, gate, residual);
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_shrink_(
      Tensor z, Optional residual, Optional weight, Optional bias, Optional running_mean, Optional running_var,
      Optional batches, double momentum, int64_t input_norm, double input_eps, Tensor w1, Optional b1,
      Optional norm_weight, Optional norm_bias, Tensor w2, Optional b2, Optional gate_running_mean,
      Optional gate_running_var, Optional gate_batches, double gate_momentum, int64_t gate_norm, double eps,
      bool per_sample) {
    const typename Backend::Guard guard(z);
    const auto p = prepared<BatchNormShrink>("z", z, per_sample, is_channels_last(z));
    WideTensors wide(z);
    NormTensors input(wide, kInputNorm, input_norm, input_eps, weight, bias, p.rows.channels);
    input.write_running(running_mean, running_var, batches, momentum);
    GateTensors gate(wide, p.rows.channels, w1, b1, norm_weight, norm_bias, w2, b2, gate_norm, eps, kSecondGateNorm);
    gate.norm.write_running(gate_running_mean, gate_running_var, gate_batches, gate_momentum);
    const Access input_updated = input.updates() ? Access::kWrites : Access::kReads;
    const Access gate_updated = gate.norm.updates() ? Access::kWrites : Access::kReads;
    check_overlap({{"z", z, Access::kReads},
                   {"residual", residual, Access::kReads},
                   {kInputNorm.weight, weight, Access::kReads},
                   {kInputNorm.bias, bias, Access::kReads},
                   {"w1 (gate[0].weight)", w1, Access::kReads},
                   {"b1 (gate[0].bias)", b1, Access::kReads},
                   {kSecondGateNorm.weight, norm_weight, Access::kReads},
                   {kSecondGateNorm.bias, norm_bias, Access::kReads},
                   {"w2 (gate[3].weight)", w2, Access::kReads},
                   {"b2 (gate[3].bias)", b2, Access::kReads},
                   {kInputNorm.mean, running_mean, input_updated},
                   {kInputNorm.var, running_var, input_updated},
                   {kInputNorm.batches, batches, input_updated},
                   {kSecondGateNorm.mean, gate_running_mean, gate_updated},
                   {kSecondGateNorm.var, gate_running_var, gate_updated},
                   {kSecondGateNorm.batches, gate_batches, gate_updated}});
    return run_batch_norm_shrink(p, z, input, gate, residual);
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_shrink_backward(
      Tensor grad, Tensor z, Optional weight, Optional bias, int64_t input_norm, Tensor mean, Tensor state,
      Tensor input_state, Tensor w1, Optional b1, Optional norm_weight, Optional norm_bias, Tensor w2, Optional b2,
      int64_t gate_norm, double eps, bool per_sample, bool need_z, bool need_parameters) {
    const typename Backend::Guard guard(grad);
    const ScalarType type = grad.scalar_type();
    const Shape shape = shape_of(grad);
    const bool channels_last = is_channels_last(z);
    auto p = prepared<BatchNormShrinkBackward>("grad", grad, per_sample, channels_last);
    WideTensors wide(grad);
    const NormTensors input(wide, kInputNorm, input_norm, 0, weight, bias, p.rows.channels);
    const GateTensors gate(wide, p.rows.channels, w1, b1, norm_weight, norm_bias, w2, b2, gate_norm, eps);
    z = checked("z", z, shape, type, grad, channels_last);
    input_state = checked("input_state", input_state, {2, p.rows.channels}, accumulator_of(type), grad);
    grad = laid_out(grad, channels_last);
    const Tensor dz = empty(need_z ? shape : Shape{0}, type, grad, need_z && channels_last);
    p.z = data(z);
    p.input_state = data(input_state);
    p.dx = pointer_or_null(dz);
    const auto [dweight, dbias] = input.gradients(need_parameters, p.dinput_weight, p.dinput_bias);
    const Gradients g = fill_backward(p, grad, gate, mean, state, need_parameters);
    p.input = input.norm;
    Backend::batch_norm_shrink_backward(p, grad);
    wide.narrow<Backend>();
    return {dz, dweight, dbias, g[0], g[1], g[2], g[3], g[4], g[5]};
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("gated_shrink", TORCH_BOX(&gated_shrink));
    m.impl("gated_shrink_with_mask", TORCH_BOX(&gated_shrink_with_mask));
    m.impl("gated_shrink_", TORCH_BOX(&gated_shrink_));
    m.impl("gated_shrink_backward", TORCH_BOX(&gated_shrink_backward));
    m.impl("batch_norm_shrink", TORCH_BOX(&batch_norm_shrink));
    m.impl("batch_norm_shrink_", TORCH_BOX(&batch_norm_shrink_));
    m.impl("batch_norm_shrink_backward", TORCH_BOX(&batch_norm_shrink_backward));
  }
};

}  // namespace drsn
