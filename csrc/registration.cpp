// Every schema of the package; kernels are registered by cpu/register.cpp and cuda/register.cpp.
//
// `value` is tau where tau is None. A with_code operator returns what its backward needs (shrinkage_math.h) last; so do
// the in-place forms, an empty tensor without with_code. In a backward operator a gradient that is not needed comes
// back empty. `alpha` is (N or 1, C or 1); means, row values and alpha are of the accumulator's type.
#include "torch_api.h"

STABLE_TORCH_LIBRARY(drsn_ops, m) {
  m.def("soft_threshold(Tensor x, Tensor? tau, float value) -> Tensor");
  m.def("soft_threshold_with_code(Tensor x, Tensor? tau, float value) -> (Tensor, Tensor)");
  m.def("soft_threshold_(Tensor(a!) x, Tensor? tau, float value, bool with_code) -> Tensor");
  m.def(
      "soft_threshold_backward(Tensor grad, Tensor code, int[] tau_shape, ScalarType? tau_dtype, bool channels_last, "
      "bool need_x) -> (Tensor, Tensor)");
  m.def(
      "soft_threshold_tangent(Tensor? dx, Tensor? dtau, Tensor code, int[] shape, ScalarType dtype, "
      "bool channels_last) -> Tensor");
  m.def(
      "complex_soft_threshold_backward(Tensor grad, Tensor x, Tensor? tau, float value, bool need_x, bool need_tau) -> "
      "(Tensor, Tensor)");

  m.def("abs_mean(Tensor x, bool per_sample) -> Tensor");
  m.def("abs_mean_with_code(Tensor x, bool per_sample) -> (Tensor, Tensor)");

  m.def("shrink(Tensor x, Tensor alpha, Tensor? residual, bool per_sample) -> (Tensor, Tensor)");
  m.def("shrink_with_code(Tensor x, Tensor alpha, Tensor? residual, bool per_sample) -> (Tensor, Tensor, Tensor)");
  m.def("shrink_(Tensor(a!) x, Tensor alpha, Tensor? residual, bool per_sample, bool with_code) -> (Tensor, Tensor)");
  m.def(
      "shrink_backward(Tensor grad, Tensor? grad_mean, Tensor code, Tensor alpha, Tensor mean, bool per_sample, "
      "bool channels_last, bool need_x, bool need_alpha) -> (Tensor, Tensor)");

  m.def(
      "combine(Tensor? grad, Tensor? w, Tensor? v, Tensor code, int[] shape, ScalarType dtype, bool channels_last) -> "
      "Tensor");
  m.def("row_sums(Tensor grad, Tensor code, bool channels_last) -> (Tensor, Tensor)");

  m.def("cpu_simd() -> str");
}
