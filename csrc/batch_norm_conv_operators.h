// The host side of the operators that normalise, apply ReLU and convolve few channels, and of a residual unit of them
// in evaluation. The CPU alone has them.
#pragma once

#include "batch_norm_operators.h"
#include "gated_operators.h"

namespace drsn {

// The names of a convolution's arguments for error messages.
struct ConvNames {
  const char *weight, *bias;
};
inline constexpr ConvNames kOnlyConv{"conv_weight", "conv_bias"};

// The same of a residual unit, and those of its normalisations.
inline constexpr ConvNames kFirstConv{"conv_weight1 (conv1.weight)", "conv_bias1 (conv1.bias)"};
inline constexpr ConvNames kSecondConv{"conv_weight2 (conv2.weight)", "conv_bias2 (conv2.bias)"};
inline constexpr NormNames kFirstNorm{
    "norm1", "weight1 (bn1.weight)", "bias1 (bn1.bias)", "mean1 (bn1.running_mean)", "var1 (bn1.running_var)", "",
    "",      NormKind::kRunning};
inline constexpr NormNames kSecondNorm{
    "norm2", "weight2 (bn2.weight)", "bias2 (bn2.bias)", "mean2 (bn2.running_mean)", "var2 (bn2.running_var)", "",
    "",      NormKind::kRunning};

template <class Backend>
struct BatchNormConvOperators {
  using Common = BatchNormOperators<Backend>;
  using Outputs = typename Common::Outputs;
  using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

  // x and the convolution's parameters, checked and laid out, and what follows from them.
  struct Inputs {
    Tensor x, conv_weight;
    Optional conv_bias;
    UnitShapes shapes;
    Rows rows;
    NarrowConvolution conv;

    Inputs(const Tensor& given, const Tensor& weight, const Optional& bias, int64_t stride,
           const ConvNames& names = kOnlyConv)
        : x(channels_last_of(given, stride)), conv_weight(weight), shapes(x, stride) {
      constexpr int64_t kMost = 16;
      rows = rows_with_elements("x", x, true);
      conv.out_channels = weight.dim() > 0 ? weight.size(0) : 0;
      if (conv.out_channels < 1 || conv.out_channels > kMost || rows.channels > kMost)
        refuse(names.weight, words(weight), "1 to 16 channels of x and as many of the result");
      conv_weight = checked(names.weight, weight, {conv.out_channels, rows.channels, 3}, ScalarType::Float, x);
      conv_bias = checked(names.bias, bias, {conv.out_channels}, ScalarType::Float, x);
      conv.weight = static_cast<const float*>(data(conv_weight));
      conv.before = stride > 1 ? shapes.spatial.before[2] : 1;
      conv.out_length = shapes.shortcut[2];
    }

    Shape shape() const { return {rows.samples, conv.out_channels, conv.out_length}; }

    template <class P>
    void describe(P& p, int64_t stride) const {
      p.dtype = DType::kFloat;
      p.x = data(x);
      p.rows = rows;
      p.stride = stride;
      p.spatial = {{1, 1, rows.length}, {}, {}};
      p.conv = conv;
    }

    static Tensor channels_last_of(const Tensor& x, int64_t stride) {
      if (x.scalar_type() != ScalarType::Float || x.dim() != 3) refuse("x", words(x), "float32 of shape (N, C, L)");
      if (stride != 1 && stride != 2) refuse("stride", std::to_string(stride), "1 or 2");
      return laid_out(x, true);
    }
  };

  // All but y and the state, once the tensors are wide.
  static BatchNormReluConv forward(const Inputs& in, const NormTensors& norm, int64_t stride, const Tensor& shortcut) {
    BatchNormReluConv p{};
    in.describe(p, stride);
    p.norm = norm.norm;
    p.conv_bias = static_cast<const float*>(data(in.conv_bias));
    p.shortcut = pointer_or_null(shortcut);
    p.shortcut_channels = shortcut.dim() > 1 ? shortcut.size(1) : 0;
    return p;
  }

  static Outputs run(const Inputs& in, const NormTensors& norm, int64_t stride, int64_t shortcut_channels) {
    const Tensor shortcut = Common::empty_shortcut(in.shapes, in.x, shortcut_channels, true);
    const Tensor y = empty(in.shape(), ScalarType::Float, in.x, true);
    const Tensor state = empty({2, in.rows.channels}, ScalarType::Float, in.x);
    norm.wide.template widen<Backend>();
    BatchNormReluConv p = forward(in, norm, stride, shortcut);
    p.state = state.mutable_data_ptr();
    p.out = static_cast<float*>(y.mutable_data_ptr());
    Backend::batch_norm_relu_conv(p, in.x);
    norm.wide.template narrow<Backend>();
    return {y, shortcut, state};
  }

  static Outputs batch_norm_relu_conv(Tensor x, Optional weight, Optional bias, Optional running_mean,
                                      Optional running_var, int64_t kind, double eps, Tensor conv_weight,
                                      Optional conv_bias, int64_t stride, int64_t shortcut_channels) {
    const Inputs in(x, conv_weight, conv_bias, stride);
    WideTensors wide(in.x);
    NormTensors norm = Common::norm_of(wide, in.x, kind, eps, weight, bias);
    norm.read_running(running_mean, running_var);
    return run(in, norm, stride, shortcut_channels);
  }

  static Outputs batch_norm_relu_conv_(Tensor x, Optional weight, Optional bias, Optional running_mean,
                                       Optional running_var, Optional batches, double momentum, int64_t kind,
                                       double eps, Tensor conv_weight, Optional conv_bias, int64_t stride,
                                       int64_t shortcut_channels) {
    const Inputs in(x, conv_weight, conv_bias, stride);
    WideTensors wide(in.x);
    NormTensors norm = Common::norm_of(wide, in.x, kind, eps, weight, bias);
    norm.write_running(running_mean, running_var, batches, momentum);
    const Access updated = norm.updates() ? Access::kWrites : Access::kReads;
    check_overlap({{"x", x, Access::kReads},
                   {kOnlyNorm.weight, weight, Access::kReads},
                   {kOnlyNorm.bias, bias, Access::kReads},
                   {kOnlyNorm.mean, running_mean, updated},
                   {kOnlyNorm.var, running_var, updated},
                   {kOnlyNorm.batches, batches, updated},
                   {"conv_weight", conv_weight, Access::kReads},
                   {"conv_bias", conv_bias, Access::kReads}});
    return run(in, norm, stride, shortcut_channels);
  }

  static Gradients batch_norm_relu_conv_backward(Tensor grad, Optional grad_shortcut, Tensor x, Optional weight,
                                                 Optional bias, int64_t kind, Tensor state, Tensor conv_weight,
                                                 int64_t stride, bool need_x, bool need_parameters, bool need_conv) {
    const Inputs in(x, conv_weight, std::nullopt, stride);
    WideTensors wide(in.x);
    const NormTensors norm = Common::norm_of(wide, in.x, kind, 0, weight, bias);
    const int64_t channels = in.rows.channels;
    BatchNormReluConvBackward p{};
    in.describe(p, stride);
    grad = checked("grad", grad, in.shape(), ScalarType::Float, in.x, true);
    grad_shortcut = Common::checked_shortcut(grad_shortcut, in.shapes, in.x, true);
    state = checked("state", state, {2, channels}, ScalarType::Float, in.x);
    const auto one = [&](bool wanted, const Shape& shape) {
      return empty(wanted ? shape : Shape{0}, ScalarType::Float, in.x);
    };
    const bool wanted = need_x || need_parameters;
    const Tensor dx = empty(wanted ? shape_of(x) : Shape{0}, ScalarType::Float, in.x, wanted);
    const auto [dweight, dbias] = norm.gradients(need_parameters, p.dweight, p.dbias);
    const Tensor dconv_weight = one(need_conv, shape_of(conv_weight)),
                 dconv_bias = one(need_conv, {in.conv.out_channels});
    p.grad_shortcut = data(grad_shortcut);
    p.shortcut_channels = grad_shortcut ? grad_shortcut->size(1) : 0;
    wide.widen<Backend>();
    p.norm = norm.norm;
    p.state = data(state);
    p.grad = p.dx = pointer_or_null(dx);
    p.grad_conv = static_cast<const float*>(data(grad));
    p.need_x = need_x;
    p.dconv_weight = static_cast<float*>(pointer_or_null(dconv_weight));
    p.dconv_bias = static_cast<float*>(pointer_or_null(dconv_bias));
    Backend::batch_norm_relu_conv_backward(p, in.x);
    wide.narrow<Backend>();
    return {need_x ? dx : one(false, {}), dweight, dbias, dconv_weight, dconv_bias};
  }

  static Tensor residual_unit(Tensor x, Optional weight1, Optional bias1, Optional mean1, Optional var1, double eps1,
                              Tensor conv_weight1, Optional conv_bias1, Optional weight2, Optional bias2,
                              Optional mean2, Optional var2, double eps2, Tensor conv_weight2, Optional conv_bias2,
                              int64_t stride, Tensor w1, Optional b1, Optional norm_weight, Optional norm_bias,
                              Tensor w2, Optional b2, Optional running_mean, Optional running_var, int64_t gate_norm,
                              double eps, bool per_sample) {
    const int64_t running = int64_t(NormKind::kRunning);
    const Inputs first(x, conv_weight1, conv_bias1, stride, kFirstConv);
    const Tensor y = empty(first.shape(), ScalarType::Float, first.x, true);
    const Inputs second(y, conv_weight2, conv_bias2, 1, kSecondConv);
    if (second.conv.out_channels != second.rows.channels || second.rows.channels < first.rows.channels)
      refuse(kSecondConv.weight, words(conv_weight2), "as many channels as the first result, no fewer than x");
    if (second.rows.line_length() > ResidualUnit::kMostOfSample)
      refuse("x", words(x), "at most " + std::to_string(ResidualUnit::kMostOfSample) + " elements of a sample of y");
    if (gate_norm == int64_t(NormKind::kBatch)) refuse("gate_norm", "that over the batch", "another");
    WideTensors wide(x);
    NormTensors norm1(wide, kFirstNorm, running, eps1, weight1, bias1, first.rows.channels);
    NormTensors norm2(wide, kSecondNorm, running, eps2, weight2, bias2, second.rows.channels);
    norm1.read_running(mean1, var1);
    norm2.read_running(mean2, var2);
    GateTensors gate(wide, second.rows.channels, w1, b1, norm_weight, norm_bias, w2, b2, gate_norm, eps);
    gate.norm.read_running(running_mean, running_var);
    const bool itself = stride == 1 && second.rows.channels == first.rows.channels;
    const auto shortcut_of = [&](const Inputs& in, int64_t channels) {
      return Common::empty_shortcut(in.shapes, in.x, channels, true);
    };
    const Tensor none = shortcut_of(second, 0), made = itself ? none : shortcut_of(first, second.rows.channels);
    wide.widen<Backend>();
    ResidualUnit p{forward(first, norm1, stride, made), forward(second, norm2, 1, none),
                   GatedOperators<Backend>::template prepared<GatedShrink>("y", y, per_sample, true)};
    p.second.out = static_cast<float*>(y.mutable_data_ptr());
    const auto kept = GatedOperators<Backend>::fill_forward(p.shrink, y, gate, itself ? first.x : made, y);
    Backend::residual_unit(p, y);
    return y;
  }

  template <class Library>
  static void add_to(Library& m) {
    m.impl("batch_norm_relu_conv", TORCH_BOX(&batch_norm_relu_conv));
    m.impl("batch_norm_relu_conv_", TORCH_BOX(&batch_norm_relu_conv_));
    m.impl("batch_norm_relu_conv_backward", TORCH_BOX(&batch_norm_relu_conv_backward));
    m.impl("residual_unit", TORCH_BOX(&residual_unit));
  }
};

}  // namespace drsn
