// The host side of the operators, once for every backend: checks, layouts, allocation, parameters. A Backend has a
// static function for each operator's struct of params.h, `Guard`, which makes a tensor's device current, and
// `Scratch`, memory for one call.
#pragma once

#include "overlap.h"
#include "shrinkage_math.h"
#include "torch_api.h"

namespace drsn {

using Optional = std::optional<Tensor>;

inline Rows rows_of(const char* name, const Shape& shape, bool channels_last) {
  if (shape.size() < 2 || shape.size() > 5 || *std::min_element(shape.begin(), shape.end()) < 0)
    refuse(name, "shape " + words(shape), "(N, C, *spatial) with up to three spatial axes");
  int64_t length = 1;
  for (size_t axis = 2; axis < shape.size(); ++axis) length *= shape[axis];
  return {shape[0], shape[1], length, channels_last};
}

// One number per row, from a matrix of (N or 1, C or 1).
inline RowValues row_values(const Tensor& matrix) {
  return {data(matrix), matrix.size(0) == 1 ? 0 : matrix.stride(0), matrix.size(1) == 1 ? 0 : matrix.stride(1)};
}

inline void check_row_matrix(const char* name, const Tensor& t, const Rows& rows, ScalarType type, const Tensor& like) {
  if (t.dim() == 2 && (t.size(0) == rows.samples || t.size(0) == 1) && (t.size(1) == rows.channels || t.size(1) == 1) &&
      t.scalar_type() == type && same_device(t, like))
    return;
  const std::string shape = "(" + std::to_string(rows.samples) + " or 1, " + std::to_string(rows.channels) + " or 1)";
  refuse(name, words(t), words(type, shape, like));
}

inline Shape shape_of_mask(const Rows& rows, int64_t planes) {
  return {rows.lines(), planes, mask_bytes(rows.line_length())};
}

inline Shape shape_of_mean(const Rows& rows, bool per_sample) { return {rows.samples, per_sample ? 1 : rows.channels}; }

inline Optional checked(const char* name, const Optional& t, const Shape& shape, ScalarType type, const Tensor& like,
                        bool channels_last = false) {
  return t ? Optional(checked(name, *t, shape, type, like, channels_last)) : t;
}

inline Tensor empty_mask(const Rows& rows, int64_t planes, const Tensor& like) {
  return empty(shape_of_mask(rows, planes), ScalarType::Byte, like);
}

// How a tau of this shape lies over x; refuses a shape that does not broadcast.
inline Broadcast broadcast(const char* name, const Shape& shape, bool channels_last, const Shape& tau_shape,
                           const Shape& tau_strides) {
  const auto axes = int64_t(shape.size());
  const auto missing = axes - int64_t(tau_shape.size());
  const auto fits = [&](bool holds) {
    if (!holds) refuse(name, "shape " + words(tau_shape), "one that broadcasts to x, " + words(shape));
  };
  fits(missing >= 0);
  Broadcast over{};
  for (int64_t p = 0; p < axes; ++p) {
    const int axis = memory_axis(p, axes, channels_last);
    const int64_t tau_axis = axis - missing;
    const int64_t tau_size = tau_axis < 0 ? 1 : tau_shape[tau_axis];
    fits(tau_size == 1 || tau_size == shape[axis]);
    if (shape[axis] == 1) continue;
    const int64_t stride = tau_size == 1 ? 0 : tau_strides[tau_axis];
    const int last = over.axes - 1;
    if (over.axes > 0 && over.stride[last] == stride * shape[axis]) {
      over.size[last] *= shape[axis];
      over.stride[last] = stride;
    } else {
      if (over.axes == kMaxAxes) {
        refuse(name, "shape " + words(tau_shape),
               "one that repeats along no more than " + std::to_string(kMaxAxes) + " axes");
      }
      over.size[over.axes] = shape[axis];
      over.stride[over.axes++] = stride;
    }
  }
  if (over.axes == 0) over = {1, {1}, {0}};
  return over;
}

inline Shape strides_of(const Tensor& t) {
  const auto strides = t.strides();
  return Shape(strides.begin(), strides.end());
}

// Refuses a type that tau may not have; returns whether it is the accumulator's.
inline bool check_tau_type(const char* name, ScalarType tau, ScalarType x) {
  const ScalarType wide = accumulator_of(x);
  const bool complex = x == ScalarType::ComplexFloat || x == ScalarType::ComplexDouble;
  if (tau != wide && (tau != x || complex))
    refuse(name, words(tau), (complex || x == wide ? "" : words(x) + " or ") + words(wide));
  return tau == wide;
}

// The same of a tensor, and its device; `broadcast` checks the shape.
inline bool check_tau(const Tensor& tau, const Tensor& x) {
  if (!same_device(tau, x)) refuse("tau", words(tau), "one on " + device_words(x));
  return check_tau_type("tau", tau.scalar_type(), x.scalar_type());
}

inline void check_overwritten(const Tensor& x, bool channels_last) {
  if (!lies_in(x, channels_last)) refuse("x", "strided memory", "contiguous or channels_last to be overwritten");
}

inline void zero(Tensor t) { torch::stable::zero_(t); }

// An output that is not wanted is empty.
inline void* pointer_or_null(const Tensor& t) { return t.numel() > 0 ? t.mutable_data_ptr() : nullptr; }

template <class Backend>
struct Operators {
  // Writes y, which may be x, and the mask where there is one.
  static void run_soft_threshold(const Tensor& x, const Optional& tau, double value, const Tensor& y,
                                 bool channels_last, uint8_t* mask) {
    const Shape shape = shape_of(x);
    const ScalarType type = x.scalar_type();
    SoftThreshold p{};
    p.dtype = dtype_of("x", type, mask ? Numbers::kReal : Numbers::kBoth);
    p.x = data(x);
    p.y = y.mutable_data_ptr();
    p.tau = data(tau);
    p.value = value;
    p.numel = x.numel();
    if (tau) {
      p.tau_in_accumulator = check_tau(*tau, x);
      p.over = broadcast("tau", shape, channels_last, shape_of(*tau), strides_of(*tau));
    } else {
      p.over = {1, {p.numel}, {0}};
    }
    p.mask = mask;
    if (p.numel > 0) Backend::soft_threshold(p, x);
  }

  static Tensor empty_soft_threshold_mask(const Tensor& x, bool wanted) {
    return empty({wanted ? kSoftThresholdPlanes : 0, mask_bytes(x.numel())}, ScalarType::Byte, x);
  }

  static std::tuple<Tensor, Tensor> soft_threshold_with_mask(Tensor x, Optional tau, double value) {
    const typename Backend::Guard guard(x);
    const bool channels_last = is_channels_last(x);
    x = laid_out(x, channels_last);
    const Tensor y = empty(shape_of(x), x.scalar_type(), x, channels_last);
    const Tensor mask = empty_soft_threshold_mask(x, true);
    run_soft_threshold(x, tau, value, y, channels_last, bytes(mask));
    return {y, mask};
  }

  static Tensor soft_threshold(Tensor x, Optional tau, double value) {
    const typename Backend::Guard guard(x);
    const bool channels_last = is_channels_last(x);
    x = laid_out(x, channels_last);
    const Tensor y = empty(shape_of(x), x.scalar_type(), x, channels_last);
    run_soft_threshold(x, tau, value, y, channels_last, nullptr);
    return y;
  }

  static Tensor soft_threshold_(Tensor x, Optional tau, double value, bool with_mask) {
    const typename Backend::Guard guard(x);
    const bool channels_last = is_channels_last(x);
    check_overwritten(x, channels_last);
    check_overlap({{"x", x, Access::kWrites}, {"tau", tau, Access::kReadsElement}});
    const Tensor mask = empty_soft_threshold_mask(x, with_mask);
    run_soft_threshold(x, tau, value, x, channels_last, with_mask ? bytes(mask) : nullptr);
    return mask;
  }

  // Fills in where the gradients go and what tau looks like, runs, and returns (dx, dtau).
  static std::tuple<Tensor, Tensor> run_soft_threshold_backward(SoftThresholdBackward p, const Tensor& grad,
                                                                const Shape& tau_shape,
                                                                std::optional<ScalarType> tau_dtype, bool channels_last,
                                                                bool need_x, Numbers numbers) {
    const Shape shape = shape_of(grad);
    const ScalarType type = grad.scalar_type();
    p.dtype = dtype_of("grad", type, numbers);
    p.grad = data(grad);
    p.numel = grad.numel();
    // A tau of the shape of x gets its gradient in the layout of x: the kernel then walks both as one axis.
    const bool follows = channels_last && tau_shape == shape;
    p.over = broadcast(numbers == Numbers::kReal ? "tau_shape" : "tau", shape, channels_last, tau_shape,
                       strides_for(tau_shape, follows));
    const Tensor dx = empty(need_x ? shape : Shape{0}, type, grad, need_x && channels_last);
    const Tensor dtau = empty(tau_dtype ? tau_shape : Shape{0}, tau_dtype.value_or(type), grad, tau_dtype && follows);
    p.dx = pointer_or_null(dx);
    p.dtau = pointer_or_null(dtau);
    p.dtau_numel = dtau.numel();
    if (p.numel > 0) {
      Backend::soft_threshold_backward(p, grad);
    } else if (p.dtau) {
      zero(dtau);
    }
    return {dx, dtau};
  }

  static std::tuple<Tensor, Tensor> soft_threshold_backward(Tensor grad, Tensor mask, Shape tau_shape,
                                                            std::optional<ScalarType> tau_dtype, bool channels_last,
                                                            bool need_x) {
    const typename Backend::Guard guard(grad);
    grad = laid_out(grad, channels_last);
    mask = checked("mask", mask, {kSoftThresholdPlanes, mask_bytes(grad.numel())}, ScalarType::Byte, grad);
    SoftThresholdBackward p{};
    p.mask = bytes(mask);
    if (tau_dtype) p.tau_in_accumulator = check_tau_type("tau_dtype", *tau_dtype, grad.scalar_type());
    return run_soft_threshold_backward(p, grad, tau_shape, tau_dtype, channels_last, need_x, Numbers::kReal);
  }

  static std::tuple<Tensor, Tensor> complex_soft_threshold_backward(Tensor grad, Tensor x, Optional tau, double value,
                                                                    bool need_x, bool need_tau) {
    const typename Backend::Guard guard(x);
    const bool channels_last = is_channels_last(x);
    dtype_of("x", x.scalar_type(), Numbers::kComplex);
    x = laid_out(x, channels_last);
    grad = checked("grad", grad, shape_of(x), x.scalar_type(), x, channels_last);
    SoftThresholdBackward p{};
    p.x = data(x);
    p.value = value;
    Tensor dense_tau = x;
    std::optional<ScalarType> tau_dtype;
    if (tau) {
      p.tau_in_accumulator = check_tau(*tau, x);
      dense_tau = laid_out(*tau, channels_last && has_shape(*tau, shape_of(x)));
      p.tau = data(dense_tau);
      if (need_tau) tau_dtype = tau->scalar_type();
    }
    return run_soft_threshold_backward(p, grad, tau ? shape_of(*tau) : Shape{}, tau_dtype, channels_last, need_x,
                                       Numbers::kComplex);
  }

  static Tensor run_abs_mean(Tensor x, bool per_sample, Tensor* mask) {
    const typename Backend::Guard guard(x);
    const ScalarType type = x.scalar_type();
    AbsMean p{};
    p.dtype = dtype_of("x", type);
    p.rows = rows_of("x", shape_of(x), is_channels_last(x));
    p.per_sample = per_sample;
    p.masked = true;
    x = laid_out(x, p.rows.channels_last);
    const Tensor mean = empty(shape_of_mean(p.rows, per_sample), accumulator_of(type), x);
    if (mask) {
      *mask = empty_mask(p.rows, kAbsMeanPlanes, x);
      p.mask = bytes(*mask);
    }
    p.x = data(x);
    p.mean = mean.mutable_data_ptr();
    p.rows.numel() > 0 ? Backend::abs_mean(p, x) : zero(mean);
    return mean;
  }

  static Tensor abs_mean(Tensor x, bool per_sample) { return run_abs_mean(x, per_sample, nullptr); }

  static std::tuple<Tensor, Tensor> abs_mean_with_mask(Tensor x, bool per_sample) {
    Tensor mask;
    const Tensor mean = run_abs_mean(x, per_sample, &mask);
    return {mean, mask};
  }

  static Tensor abs_mean_backward(Tensor grad, Tensor mask, Shape shape, ScalarType dtype, bool channels_last) {
    const typename Backend::Guard guard(mask);
    AbsMeanBackward p{};
    p.dtype = dtype_of("dtype", dtype);
    p.rows = rows_of("shape", shape, channels_last);
    check_row_matrix("grad", grad, p.rows, accumulator_of(dtype), mask);
    mask = checked("mask", mask, shape_of_mask(p.rows, kAbsMeanPlanes), ScalarType::Byte, mask);
    const Tensor dx = empty(shape, dtype, mask, channels_last);
    p.grad = row_values(grad);
    p.mask = bytes(mask);
    p.dx = dx.mutable_data_ptr();
    if (p.rows.numel() > 0) Backend::abs_mean_backward(p, mask);
    return dx;
  }

  static Tensor empty_shrink_mask(const Tensor& x, bool channels_last) {
    return empty_mask(rows_of("x", shape_of(x), channels_last), kShrinkPlanes, x);
  }

  static Tensor empty_mean(const Tensor& x, bool per_sample) {
    return empty(shape_of_mean(rows_of("x", shape_of(x), false), per_sample), accumulator_of(x.scalar_type()), x);
  }

  // Writes y, which may be x, and the means and the mask where they are wanted.
  static void run_shrink(const Tensor& x, const Tensor& alpha, Optional residual, const Tensor& y, bool per_sample,
                         bool channels_last, const Optional& mean, uint8_t* mask) {
    const ScalarType type = x.scalar_type();
    Shrink p{};
    p.dtype = dtype_of("x", type);
    p.rows = rows_of("x", shape_of(x), channels_last);
    p.per_sample = per_sample;
    check_row_matrix("alpha", alpha, p.rows, accumulator_of(type), x);
    residual = checked("residual", residual, shape_of(x), type, x, channels_last);
    if (y.get() == x.get()) {
      check_overlap(
          {{"x", x, Access::kWrites}, {"alpha", alpha, Access::kReads}, {"residual", residual, Access::kReadsElement}});
    }
    const int64_t means = p.rows.samples * (per_sample ? 1 : p.rows.channels);
    const typename Backend::Scratch unwanted(mean ? 0 : means * int64_t(sizeof(double)), x);
    p.x = data(x);
    p.residual = data(residual);
    p.y = y.mutable_data_ptr();
    p.alpha = row_values(alpha);
    p.mean = mean ? mean->mutable_data_ptr() : unwanted.data();
    p.mask = mask;
    if (p.rows.numel() > 0) {
      Backend::shrink(p, x);
    } else if (mean) {
      zero(*mean);
    }
  }

  static std::tuple<Tensor, Tensor, Tensor> shrink_with_mask(Tensor x, Tensor alpha, Optional residual,
                                                             bool per_sample) {
    const typename Backend::Guard guard(x);
    const bool channels_last = is_channels_last(x);
    x = laid_out(x, channels_last);
    const Tensor y = empty(shape_of(x), x.scalar_type(), x, channels_last);
    const Tensor mask = empty_shrink_mask(x, channels_last);
    const Tensor mean = empty_mean(x, per_sample);
    run_shrink(x, alpha, residual, y, per_sample, channels_last, mean, bytes(mask));
    return {y, mean, mask};
  }

  static Tensor shrink(Tensor x, Tensor alpha, Optional residual, bool per_sample) {
    const typename Backend::Guard guard(x);
    const bool channels_last = is_channels_last(x);
    x = laid_out(x, channels_last);
    const Tensor y = empty(shape_of(x), x.scalar_type(), x, channels_last);
    run_shrink(x, alpha, residual, y, per_sample, channels_last, std::nullopt, nullptr);
    return y;
  }

  static std::tuple<Tensor, Tensor> shrink_(Tensor x, Tensor alpha, Optional residual, bool per_sample,
                                            bool with_mask) {
    const typename Backend::Guard guard(x);
    const bool channels_last = is_channels_last(x);
    check_overwritten(x, channels_last);
    const Tensor mask = with_mask ? empty_shrink_mask(x, channels_last) : empty({0}, ScalarType::Byte, x);
    const Tensor mean = empty_mean(x, per_sample);
    run_shrink(x, alpha, residual, x, per_sample, channels_last, mean, with_mask ? bytes(mask) : nullptr);
    return {mean, mask};
  }

  static std::tuple<Tensor, Tensor> shrink_backward(Tensor grad, Optional grad_mean, Tensor mask, Tensor alpha,
                                                    Tensor mean, bool per_sample, bool channels_last, bool need_x,
                                                    bool need_alpha) {
    const typename Backend::Guard guard(grad);
    const Shape shape = shape_of(grad);
    const ScalarType type = grad.scalar_type();
    const ScalarType wide = accumulator_of(type);
    ShrinkBackward p{};
    p.dtype = dtype_of("grad", type);
    p.rows = rows_of("grad", shape, channels_last);
    p.per_sample = per_sample;
    grad = laid_out(grad, channels_last);
    grad_mean = checked("grad_mean", grad_mean, shape_of_mean(p.rows, per_sample), wide, grad);
    mean = checked("mean", mean, shape_of_mean(p.rows, per_sample), wide, grad);
    mask = checked("mask", mask, shape_of_mask(p.rows, kShrinkPlanes), ScalarType::Byte, grad);
    check_row_matrix("alpha", alpha, p.rows, wide, grad);
    const Tensor dx = empty(need_x ? shape : Shape{0}, type, grad, need_x && channels_last);
    const Tensor dalpha = empty(need_alpha ? shape_of(alpha) : Shape{0}, wide, grad);
    p.grad = data(grad);
    p.grad_mean = data(grad_mean);
    p.mask = bytes(mask);
    p.alpha = row_values(alpha);
    p.mean = data(mean);
    p.dx = pointer_or_null(dx);
    p.dalpha = pointer_or_null(dalpha);
    p.alpha_per_sample = alpha.size(0) == p.rows.samples;
    p.alpha_per_channel = alpha.size(1) == p.rows.channels;
    if (p.rows.numel() > 0) {
      Backend::shrink_backward(p, grad);
    } else if (need_alpha) {
      zero(dalpha);
    }
    return {dx, dalpha};
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("soft_threshold", TORCH_BOX(&soft_threshold));
    m.impl("soft_threshold_with_mask", TORCH_BOX(&soft_threshold_with_mask));
    m.impl("soft_threshold_", TORCH_BOX(&soft_threshold_));
    m.impl("soft_threshold_backward", TORCH_BOX(&soft_threshold_backward));
    m.impl("complex_soft_threshold_backward", TORCH_BOX(&complex_soft_threshold_backward));
    m.impl("abs_mean", TORCH_BOX(&abs_mean));
    m.impl("abs_mean_with_mask", TORCH_BOX(&abs_mean_with_mask));
    m.impl("abs_mean_backward", TORCH_BOX(&abs_mean_backward));
    m.impl("shrink", TORCH_BOX(&shrink));
    m.impl("shrink_with_mask", TORCH_BOX(&shrink_with_mask));
    m.impl("shrink_", TORCH_BOX(&shrink_));
    m.impl("shrink_backward", TORCH_BOX(&shrink_backward));
  }
};

}  // namespace drsn
