// What an operator hands to a kernel: plain pointers and sizes, no torch type. Every pointer is on the backend's
// device.
#pragma once

#include <cstdint>

namespace drsn {

enum class DType : int { kHalf, kBFloat16, kFloat, kDouble, kComplexFloat, kComplexDouble };

// The type of statistics, thresholds and sums: double for double and complex double, else float.
constexpr bool accumulates_in_double(DType t) { return t == DType::kDouble || t == DType::kComplexDouble; }

// How tau lies over x: the axes of x in memory order, innermost last; neighbours are merged where tau's strides allow
// it.
constexpr int kMaxAxes = 12;
struct Broadcast {
  int axes;
  int64_t size[kMaxAxes];
  int64_t stride[kMaxAxes];  // of tau, in elements; 0 where tau repeats
};

struct SoftThreshold {
  DType dtype;
  const void* x;
  void* y;                  // may be x
  uint8_t* mask;            // or null: no gradient is needed; always null for complex x
  const void* tau;          // or null: `value` is tau
  bool tau_in_accumulator;  // tau's type is the accumulator's, else the (real) type of x
  double value;
  int64_t numel;
  Broadcast over;
};

// over.stride is that of dtau, which is dense: 0 only where tau repeats over x.
struct SoftThresholdBackward {
  DType dtype;  // of grad and dx
  const void* grad;
  const uint8_t* mask;  // real x
  const void* x;        // complex x, with tau and value as in SoftThreshold, `tau` contiguous
  const void* tau;
  double value;
  bool tau_in_accumulator;  // of tau and dtau
  void* dx;                 // or null: not wanted
  void* dtau;               // or null: not wanted
  int64_t dtau_numel;
  int64_t numel;
  Broadcast over;
};

// x of shape (samples, channels, length), or (samples, length, channels) in memory where channels_last.
// A line is contiguous in memory and has one segment of the mask: a row, or a sample where channels_last.
struct Rows {
  int64_t samples, channels, length;
  bool channels_last;
  int64_t numel() const { return samples * channels * length; }
  int64_t lines() const { return channels_last ? samples : samples * channels; }
  int64_t line_length() const { return channels_last ? channels * length : length; }
};

// One number per row, of the accumulator's type, at data[n * sample_stride + c * channel_stride].
struct RowValues {
  const void* data;
  int64_t sample_stride, channel_stride;
};

struct AbsMean {
  DType dtype;
  const void* x;
  void* mean;     // (samples, channels), or (samples) where per_sample; accumulator's type, contiguous
  uint8_t* mask;  // or null
  Rows rows;
  bool per_sample;
  // The sums run in the order of the mask's segments even where none is written, so that the mean has the same bits
  // either way.
  bool masked;
};

// dx = sign * grad, where grad is the gradient of the mean, already divided by the count.
struct AbsMeanBackward {
  DType dtype;
  RowValues grad;
  const uint8_t* mask;
  void* dx;
  Rows rows;
};

struct Shrink {
  DType dtype;
  const void* x;
  const void* residual;  // or null
  void* y;               // may be x
  RowValues alpha;
  void* mean;     // as in AbsMean
  uint8_t* mask;  // or null
  Rows rows;
  bool per_sample;
};

// d_tau = -sum over the row of active * sign * g, 0 where alpha * mean < 0
// d_alpha = d_tau * mean;  d_mean = d_tau * alpha (summed over the sample's channels where per_sample) + grad_mean
// dx = active * g + sign * d_mean / count,  count = length, or channels * length where per_sample
struct ShrinkBackward {
  DType dtype;
  const void* grad;
  const void* grad_mean;  // as AbsMean::mean, or null: 0
  const uint8_t* mask;
  RowValues alpha;
  const void* mean;
  void* dx;      // or null
  void* dalpha;  // contiguous, (samples or 1, channels or 1): alpha's own shape, summed where alpha repeats; or null
  bool alpha_per_sample, alpha_per_channel;  // false: that axis of dalpha is 1
  Rows rows;
  bool per_sample;
};

// A matrix of any real type and strides, in elements, and the same numbers of the accumulator's type, contiguous.
struct Conversion {
  void* data;
  void* wide;
  DType dtype;  // of data
  int64_t rows, columns, row_stride, column_stride;
};

// Copies `data` to `wide`, or back.
struct Conversions {
  static constexpr int kMost = 16;  // the parameters and running statistics of a residual unit
  DType accumulator;                // kFloat or kDouble
  bool narrows;                     // writes data
  int count;
  Conversion of[kMost];
};

// A normalisation of some features of each sample. Every pointer is of the accumulator's type; null weights are 1, null
// biases 0. With n numbers per feature, variances are biased where they divide and unbiased in the running one:
//   kBatch    over the batch's own statistics, which then enter the running ones where there are any:
//             running = (1 - f) * running + f * statistic, f = momentum, or 1 / batches where momentum is negative
//   kRunning  over the running statistics, or 0 and 1 where there are none
//   kLayer    over the features of each sample
//   kRms      the same without subtracting a mean
enum class NormKind : int { kNone, kLayer, kRms, kBatch, kRunning };
struct Norm {
  NormKind kind;
  double eps;
  const void* weight;
  const void* bias;
  void* running_mean;  // written for kBatch alone
  void* running_var;
  int64_t* batches;  // counted up for kBatch, before it is used; or null
  double momentum;
};

// alpha = sigmoid(w2 relu(norm(w1 m + b1)) + b2), with m the channel-wise abs-means of a sample.
struct Gate {
  int64_t hidden, outputs;  // outputs is 1 or the number of channels
  const void* w1;           // (hidden, channels), contiguous, of the accumulator's type, as all that follow
  const void* b1;           // (hidden), or null: 0
  const void* w2;           // (outputs, hidden)
  const void* b2;           // (outputs), or null: 0
  Norm norm;                // of `hidden` features
};

// What the backward pass of a gate keeps, in one array of the accumulator's type; the last two only for kBatch and
// kRunning.
struct GateState {
  int64_t samples, hidden, outputs;
  int64_t hidden_at() const { return 0; }                                  // (samples, hidden): w1 m + b1
  int64_t alpha_at() const { return samples * hidden; }                    // (samples, outputs)
  int64_t norm_mean_at() const { return alpha_at() + samples * outputs; }  // (hidden)
  int64_t norm_rstd_at() const { return norm_mean_at() + hidden; }         // (hidden): 1 / sqrt(variance + eps)
  int64_t size() const { return norm_rstd_at() + hidden; }
};

// x -> m -> alpha -> tau = max(alpha * statistic, 0) -> soft threshold -> + residual; the statistic is m, or its mean
// over the sample's channels where per_sample.
struct GatedShrink {
  DType dtype;
  const void* x;
  const void* residual;  // or null
  void* y;               // may be x
  Gate gate;
  void* mean;     // (samples, channels): m
  void* state;    // GateState
  uint8_t* mask;  // or null
  Rows rows;
  bool per_sample;
};

// The same of norm(z), which is never in memory: x points to z, y may not be z, and mask is null: the backward
// recomputes it from z.
struct BatchNormShrink : GatedShrink {
  Norm input;         // of the channels, over batch and length: kBatch or kRunning
  void* input_state;  // (2, channels), written: mean and rstd
};

// With d_tau and d_statistic as in ShrinkBackward, and d_m = grad_mean + the gate's + the statistic's share:
//   dx = active * g + sign * d_m / length
struct GatedShrinkBackward {
  DType dtype;
  const void* grad;
  const void* grad_mean;  // (samples, channels), or null: 0
  const uint8_t* mask;
  Gate gate;
  const void* mean;
  const void* state;
  void* dx;  // or null
  // Gradients of the gate's parameters, contiguous, of the accumulator's type; each may be null.
  void *dw1, *db1, *dnorm_weight, *dnorm_bias, *dw2, *db2;
  Rows rows;
  bool per_sample;
};

// The same of norm(z): dx points to dz, and mask and grad_mean are null.
struct BatchNormShrinkBackward : GatedShrinkBackward {
  const void* z;
  Norm input;
  const void* input_state;
  void *dinput_weight, *dinput_bias;  // (channels); each may be null
};

// The spatial axes of x, outermost first, 1 where there are fewer than three. A tensor that is padded has `before` and
// `after` positions of zeros on each.
struct Spatial {
  int64_t size[3], before[3], after[3];
};

// y = relu(norm(x)), padded as a convolution of width 3 that keeps ceil(size / stride) positions wants it; and the
// shortcut of a residual unit: every stride-th position of x on each axis, its channels between channels of zeros,
// d / 2 of the d = shortcut_channels - channels before them and the others behind.
struct BatchNormRelu {
  DType dtype;
  const void* x;
  Norm norm;       // of the channels, over batch and positions: kBatch or kRunning
  void* state;     // (2, channels), written: mean and rstd
  void* y;         // padded, in the layout of x
  void* shortcut;  // in the layout of x; or null: not wanted
  int64_t stride, shortcut_channels;
  Spatial spatial;
  Rows rows;  // of x
};

// With m = norm(x) > 0 (or NaN), M elements a channel, S1 = sum of g m, S2 = sum of g m (x - mean) rstd:
//   dbias = S1; dweight = S2; dx = weight rstd (g m - (S1 + (x - mean) rstd S2) / M) + the gradient of the shortcut,
// without the sums for kRunning.
struct BatchNormReluBackward {
  DType dtype;
  const void* grad;           // of y, padded as y
  const void* grad_shortcut;  // or null: none, or 0
  const void* x;
  Norm norm;  // kind, weight and bias
  const void* state;
  void* dx;               // or null
  void *dweight, *dbias;  // (channels), of the accumulator's type; each may be null
  int64_t stride, shortcut_channels;
  Spatial spatial;
  Rows rows;
};

// A convolution of width 3 along the one spatial axis of a float x in channels_last, which keeps ceil(length / stride)
// positions: position l of the result meets positions stride * l - before + (0, 1, 2) of x, of which those outside are
// 0.
struct NarrowConvolution {
  const float* weight;  // (out_channels, channels, 3), contiguous
  int64_t out_channels, out_length, before;
};

// y = convolution(relu(norm(x))) + bias, and the shortcut as in BatchNormRelu, whose y and spatial are not used.
struct BatchNormReluConv : BatchNormRelu {
  NarrowConvolution conv;
  const float* conv_bias;  // (out_channels), or null: 0
  float* out;              // (samples, out_length, out_channels)
};

// The gradients of the convolution, and then those of BatchNormReluBackward, whose grad and dx are one tensor, that of
// what is convolved first. Its spatial has no padding.
struct BatchNormReluConvBackward : BatchNormReluBackward {
  NarrowConvolution conv;
  const float* grad_conv;            // as `out`
  bool need_x;                       // else dx, where it is not null, is for the sums of dweight and dbias
  float *dconv_weight, *dconv_bias;  // both or neither null
};

// Two of the former, of which the second takes what the first makes, and the shrinkage of the result with the shortcut:
// norms are kRunning, states are null, no gradient is wanted. A sample of the result has at most kMostOfSample
// elements.
struct ResidualUnit {
  static constexpr int64_t kMostOfSample = 32768;
  BatchNormReluConv first, second;  // first.out and second.x are not used: what lies between is not stored
  GatedShrink shrink;               // x and y are second.out; residual is first.x or first.shortcut
};

}  // namespace drsn
