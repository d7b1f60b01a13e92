// Every schema of the package; kernels are registered by cpu/register.cpp and cuda/register.cpp.
//
// `value` is tau where tau is None. An operator `*_with_mask` returns the mask (shrinkage_math.h) last; so does an
// in-place form, an empty tensor without with_mask. In a backward operator a gradient that is not needed comes back
// empty. `alpha`, and the grad of abs_mean_backward, which is divided by the count already, are (N or 1, C or 1); they
// and means are of the accumulator's type.
//
// The parameters and running statistics of a gate or a normalisation may have any real type; their gradients have
// theirs.
//
// gate_norm and input_norm are a NormKind of params.h. The operators with a gate only read running statistics, and
// return the batch's own in state and input_state; their forms with an underscore update running statistics.
// gated_shrink_ writes into x only where inplace, and then returns an empty y.
//
// batch_norm_relu pads y for a convolution of width 3 and this stride (1: not at all); shortcut is empty where
// shortcut_channels is 0. The CPU alone has batch_norm_relu_conv: convolutions of width 3, stride 1 or 2 and up to 16
// channels; y, shortcut and dx are in channels_last. residual_unit is two of them with running statistics, of which the
// second keeps the channels, gated_shrink and the shortcut; at most 32,768 elements a sample of the result.
#include "torch_api.h"

STABLE_TORCH_LIBRARY(DRSN_NAMESPACE, m) {
  m.def("soft_threshold(Tensor x, Tensor? tau, float value) -> Tensor");
  m.def("soft_threshold_with_mask(Tensor x, Tensor? tau, float value) -> (Tensor, Tensor)");
  m.def("soft_threshold_(Tensor(a!) x, Tensor? tau, float value, bool with_mask) -> Tensor");
  m.def(
      "soft_threshold_backward(Tensor grad, Tensor mask, SymInt[] tau_shape, ScalarType? tau_dtype, "
      "bool channels_last, bool need_x) -> (Tensor, Tensor)");
  m.def(
      "complex_soft_threshold_backward(Tensor grad, Tensor x, Tensor? tau, float value, bool need_x, bool need_tau) -> "
      "(Tensor, Tensor)");

  m.def("abs_mean(Tensor x, bool per_sample) -> Tensor");
  m.def("abs_mean_with_mask(Tensor x, bool per_sample) -> (Tensor, Tensor)");
  m.def("abs_mean_backward(Tensor grad, Tensor mask, SymInt[] shape, ScalarType dtype, bool channels_last) -> Tensor");

  m.def("shrink(Tensor x, Tensor alpha, Tensor? residual, bool per_sample) -> Tensor");
  m.def("shrink_with_mask(Tensor x, Tensor alpha, Tensor? residual, bool per_sample) -> (Tensor, Tensor, Tensor)");
  m.def("shrink_(Tensor(a!) x, Tensor alpha, Tensor? residual, bool per_sample, bool with_mask) -> (Tensor, Tensor)");
  m.def(
      "shrink_backward(Tensor grad, Tensor? grad_mean, Tensor mask, Tensor alpha, Tensor mean, bool per_sample, "
      "bool channels_last, bool need_x, bool need_alpha) -> (Tensor, Tensor)");

  m.def(
      "gated_shrink(Tensor x, Tensor? residual, Tensor w1, Tensor? b1, Tensor? norm_weight, Tensor? norm_bias, "
      "Tensor w2, Tensor? b2, Tensor? running_mean, Tensor? running_var, int gate_norm, float eps, bool per_sample) -> "
      "Tensor");
  m.def(
      "gated_shrink_with_mask(Tensor x, Tensor? residual, Tensor w1, Tensor? b1, Tensor? norm_weight, "
      "Tensor? norm_bias, Tensor w2, Tensor? b2, Tensor? running_mean, Tensor? running_var, int gate_norm, float eps, "
      "bool per_sample) -> (Tensor y, Tensor mean, Tensor state, Tensor mask)");
  m.def(
      "gated_shrink_(Tensor(a!) x, Tensor? residual, Tensor w1, Tensor? b1, Tensor? norm_weight, Tensor? norm_bias, "
      "Tensor w2, Tensor? b2, Tensor(b!)? running_mean, Tensor(c!)? running_var, Tensor(d!)? batches, "
      "float momentum, int gate_norm, float eps, bool per_sample, bool inplace, bool with_mask) -> "
      "(Tensor y, Tensor mean, Tensor state, Tensor mask)");
  m.def(
      "gated_shrink_backward(Tensor grad, Tensor? grad_mean, Tensor mask, Tensor mean, Tensor state, Tensor w1, "
      "Tensor? b1, Tensor? norm_weight, Tensor? norm_bias, Tensor w2, Tensor? b2, int gate_norm, float eps, "
      "bool per_sample, bool channels_last, bool need_x, bool need_gate) -> "
      "(Tensor dx, Tensor dw1, Tensor db1, Tensor dnorm_weight, Tensor dnorm_bias, Tensor dw2, Tensor db2)");

  m.def(
      "batch_norm_shrink(Tensor z, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? running_mean, "
      "Tensor? running_var, int input_norm, float input_eps, Tensor w1, Tensor? b1, Tensor? norm_weight, "
      "Tensor? norm_bias, Tensor w2, Tensor? b2, Tensor? gate_running_mean, Tensor? gate_running_var, int gate_norm, "
      "float eps, bool per_sample) -> (Tensor y, Tensor mean, Tensor state, Tensor input_state)");
  m.def(
      "batch_norm_shrink_(Tensor z, Tensor? residual, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, Tensor(c!)? batches, float momentum, int input_norm, float input_eps, Tensor w1, "
      "Tensor? b1, Tensor? norm_weight, Tensor? norm_bias, Tensor w2, Tensor? b2, Tensor(d!)? gate_running_mean, "
      "Tensor(e!)? gate_running_var, Tensor(f!)? gate_batches, float gate_momentum, int gate_norm, float eps, "
      "bool per_sample) -> (Tensor y, Tensor mean, Tensor state, Tensor input_state)");
  m.def(
      "batch_norm_shrink_backward(Tensor grad, Tensor z, Tensor? weight, Tensor? bias, int input_norm, Tensor mean, "
      "Tensor state, Tensor input_state, Tensor w1, Tensor? b1, Tensor? norm_weight, Tensor? norm_bias, Tensor w2, "
      "Tensor? b2, int gate_norm, float eps, bool per_sample, bool need_z, bool need_parameters) -> "
      "(Tensor dz, Tensor dweight, Tensor dbias, Tensor dw1, Tensor db1, Tensor dnorm_weight, Tensor dnorm_bias, "
      "Tensor dw2, Tensor db2)");

  m.def(
      "batch_norm_relu(Tensor x, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, int norm, "
      "float eps, int stride, int shortcut_channels) -> (Tensor y, Tensor shortcut, Tensor state)");
  m.def(
      "batch_norm_relu_(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "Tensor(c!)? batches, float momentum, int norm, float eps, int stride, int shortcut_channels) -> "
      "(Tensor y, Tensor shortcut, Tensor state)");
  m.def(
      "batch_norm_relu_backward(Tensor grad, Tensor? grad_shortcut, Tensor x, Tensor? weight, Tensor? bias, int norm, "
      "Tensor state, int stride, bool need_x, bool need_parameters) -> (Tensor dx, Tensor dweight, Tensor dbias)");

  m.def(
      "batch_norm_relu_conv(Tensor x, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, "
      "int norm, float eps, Tensor conv_weight, Tensor? conv_bias, int stride, int shortcut_channels) -> "
      "(Tensor y, Tensor shortcut, Tensor state)");
  m.def(
      "batch_norm_relu_conv_(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, Tensor(c!)? batches, float momentum, int norm, float eps, Tensor conv_weight, "
      "Tensor? conv_bias, int stride, int shortcut_channels) -> (Tensor y, Tensor shortcut, Tensor state)");
  m.def(
      "batch_norm_relu_conv_backward(Tensor grad, Tensor? grad_shortcut, Tensor x, Tensor? weight, Tensor? bias, "
      "int norm, Tensor state, Tensor conv_weight, int stride, bool need_x, bool need_parameters, bool need_conv) -> "
      "(Tensor dx, Tensor dweight, Tensor dbias, Tensor dconv_weight, Tensor dconv_bias)");

  m.def(
      "residual_unit(Tensor x, Tensor? weight1, Tensor? bias1, Tensor? mean1, Tensor? var1, float eps1, "
      "Tensor conv_weight1, Tensor? conv_bias1, Tensor? weight2, Tensor? bias2, Tensor? mean2, Tensor? var2, "
      "float eps2, Tensor conv_weight2, Tensor? conv_bias2, int stride, Tensor w1, Tensor? b1, Tensor? norm_weight, "
      "Tensor? norm_bias, Tensor w2, Tensor? b2, Tensor? running_mean, Tensor? running_var, int gate_norm, float eps, "
      "bool per_sample) -> Tensor");

  m.def("cpu_simd() -> str");
}
