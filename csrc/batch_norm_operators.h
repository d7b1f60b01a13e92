// The host side of the operators that normalise, apply ReLU and make a residual unit's shortcut, once for every
// backend.
#pragma once

#include "norm_tensors.h"

namespace drsn {

// The sizes of y and of the shortcut, from an x with elements and the stride of the convolution that follows.
struct UnitShapes {
  Shape y, shortcut;  // the latter with the channels of x
  Spatial spatial;

  UnitShapes(const Tensor& x, int64_t stride) : y(shape_of(x)), shortcut(y), spatial{{1, 1, 1}, {}, {}} {
    constexpr size_t kMost = 3;
    if (stride < 1) refuse("stride", std::to_string(stride), "at least 1");
    for (size_t axis = 2; axis < y.size(); ++axis) {
      const size_t i = axis + kMost - y.size();
      const int64_t size = y[axis], padding = stride > 1 ? std::max<int64_t>(2 - (size - 1) % stride, 0) : 0;
      spatial.size[i] = size;
      spatial.before[i] = padding / 2;
      spatial.after[i] = padding - padding / 2;
      y[axis] += padding;
      shortcut[axis] = (size - 1) / stride + 1;
    }
  }
};

template <class Backend>
struct BatchNormOperators {
  using Outputs = std::tuple<Tensor, Tensor, Tensor>;

  static Tensor empty_shortcut(const UnitShapes& shapes, const Tensor& x, int64_t channels, bool channels_last) {
    if (channels != 0 && channels < x.size(1)) {
      refuse("shortcut_channels", std::to_string(channels),
             "0 for no shortcut, or at least the channels of x, " + std::to_string(x.size(1)));
    }
    Shape shape = shapes.shortcut;
    shape[1] = channels;
    return empty(channels > 0 ? shape : Shape{0}, x.scalar_type(), x, channels > 0 && channels_last);
  }

  static Optional checked_shortcut(const Optional& grad, const UnitShapes& shapes, const Tensor& x,
                                   bool channels_last) {
    if (!grad) return grad;
    Shape shape = shapes.shortcut;
    shape[1] = std::max(x.size(1), grad->dim() > 1 ? grad->size(1) : 0);
    return checked("grad_shortcut", grad, shape, x.scalar_type(), x, channels_last);
  }

  static Outputs run(Tensor x, const NormTensors& norm, int64_t stride, int64_t shortcut_channels) {
    const bool channels_last = is_channels_last(x);
    const ScalarType type = x.scalar_type();
    const UnitShapes shapes(x, stride);
    BatchNormRelu p{};
    p.dtype = dtype_of("x", type);
    p.rows = rows_with_elements("x", x, channels_last);
    const Tensor shortcut = empty_shortcut(shapes, x, shortcut_channels, channels_last);
    x = laid_out(x, channels_last);
    const Tensor y = empty(shapes.y, type, x, channels_last);
    const Tensor state = empty({2, p.rows.channels}, accumulator_of(type), x);
    norm.wide.template widen<Backend>();
    p.x = data(x);
    p.norm = norm.norm;
    p.state = state.mutable_data_ptr();
    p.y = y.mutable_data_ptr();
    p.shortcut = pointer_or_null(shortcut);
    p.stride = stride;
    p.shortcut_channels = shortcut_channels;
    p.spatial = shapes.spatial;
    Backend::batch_norm_relu(p, x);
    norm.wide.template narrow<Backend>();
    return {y, shortcut, state};
  }

  // Checks x before its channels are asked for.
  static NormTensors norm_of(WideTensors& wide, const Tensor& x, int64_t kind, double eps, const Optional& weight,
                             const Optional& bias) {
    dtype_of("x", x.scalar_type());
    return NormTensors(wide, kOnlyNorm, kind, eps, weight, bias, rows_with_elements("x", x, false).channels);
  }

  static Outputs batch_norm_relu(Tensor x, Optional weight, Optional bias, Optional running_mean, Optional running_var,
                                 int64_t kind, double eps, int64_t stride, int64_t shortcut_channels) {
    const typename Backend::Guard guard(x);
    WideTensors wide(x);
    NormTensors norm = norm_of(wide, x, kind, eps, weight, bias);
    norm.read_running(running_mean, running_var);
    return run(x, norm, stride, shortcut_channels);
  }

  static Outputs batch_norm_relu_(Tensor x, Optional weight, Optional bias, Optional running_mean, Optional running_var,
                                  Optional batches, double momentum, int64_t kind, double eps, int64_t stride,
                                  int64_t shortcut_channels) {
    const typename Backend::Guard guard(x);
    WideTensors wide(x);
    NormTensors norm = norm_of(wide, x, kind, eps, weight, bias);
    norm.write_running(running_mean, running_var, batches, momentum);
    const Access updated = norm.updates() ? Access::kWrites : Access::kReads;
    check_overlap({{"x", x, Access::kReads},
                   {kOnlyNorm.weight, weight, Access::kReads},
                   {kOnlyNorm.bias, bias, Access::kReads},
                   {kOnlyNorm.mean, running_mean, updated},
                   {kOnlyNorm.var, running_var, updated},
                   {kOnlyNorm.batches, batches, updated}});
    return run(x, norm, stride, shortcut_channels);
  }

  static Outputs batch_norm_relu_backward(Tensor grad, Optional grad_shortcut, Tensor x, Optional weight, Optional bias,
                                          int64_t kind, Tensor state, int64_t stride, bool need_x,
                                          bool need_parameters) {
    const typename Backend::Guard guard(x);
    WideTensors wide(x);
    const NormTensors norm = norm_of(wide, x, kind, 0, weight, bias);
    const bool channels_last = is_channels_last(x);
    const ScalarType type = x.scalar_type();
    const UnitShapes shapes(x, stride);
    BatchNormReluBackward p{};
    p.dtype = dtype_of("x", type);
    p.rows = rows_with_elements("x", x, channels_last);
    grad = checked("grad", grad, shapes.y, type, x, channels_last);
    grad_shortcut = checked_shortcut(grad_shortcut, shapes, x, channels_last);
    p.shortcut_channels = grad_shortcut ? grad_shortcut->size(1) : 0;
    state = checked("state", state, {2, p.rows.channels}, accumulator_of(type), x);
    x = laid_out(x, channels_last);
    const Tensor dx = empty(need_x ? shape_of(x) : Shape{0}, type, x, need_x && channels_last);
    const auto [dweight, dbias] = norm.gradients(need_parameters, p.dweight, p.dbias);
    wide.widen<Backend>();
    p.grad = data(grad);
    p.grad_shortcut = data(grad_shortcut);
    p.x = data(x);
    p.norm = norm.norm;
    p.state = data(state);
    p.dx = pointer_or_null(dx);
    p.stride = stride;
    p.spatial = shapes.spatial;
    Backend::batch_norm_relu_backward(p, x);
    wide.narrow<Backend>();
    return {dx, dweight, dbias};
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("batch_norm_relu", TORCH_BOX(&batch_norm_relu));
    m.impl("batch_norm_relu_", TORCH_BOX(&batch_norm_relu_));
    m.impl("batch_norm_relu_backward", TORCH_BOX(&batch_norm_relu_backward));
  }
};

}  // namespace drsn
