// The inner loops, over rows or over the elements of a line: compiled for each instruction set, chosen when the library
// is first used.
#pragma once

#include <cstdint>
#include <type_traits>

#include "shrinkage_math.h"

namespace drsn::cpu {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
using accumulator_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Planes of the mask to write, from a whole byte on; null where a plane is absent. The planes of the next row start
// `stride` bytes later.
struct Planes {
  uint8_t* negative = nullptr;
  uint8_t* nonzero = nullptr;
  uint8_t* active = nullptr;
  int64_t stride = 0;
};

// The same to read, from bit `offset` of each plane on.
struct ConstPlanes {
  const uint8_t* negative;
  const uint8_t* nonzero;
  const uint8_t* active;
  int64_t offset = 0;
  int64_t stride = 0;
};

// The planes of row r. Not a member function: files of different instruction sets would share its symbol.
template <class P>
DRSN_INLINE P planes_of_row(P mask, int64_t r) {
  mask.negative += r * mask.stride;
  if (mask.nonzero) mask.nonzero += r * mask.stride;
  if (mask.active) mask.active += r * mask.stride;
  return mask;
}

// A number for every element, or, where it does not vary, one for all.
template <class A>
struct Values {
  const A* data = nullptr;
  bool vary = false;
};

// norm(x) = (x - center) * scale + bias, with a number of each channel as the walk takes it.
template <class A>
struct Affine {
  const A* center = nullptr;
  const A* scale = nullptr;
  const A* bias = nullptr;
};

// The numbers of norm(x) and of its gradient: a channel's affine, at_center and slope, a line's threshold and share
// (see combine_lines; shrinkage alone). dx = scale * d + at_center + slope * (x - center), where d is the gradient of
// norm(x); at_center and slope are null where the statistics are constants, and then dx = scale * d.
template <class A>
struct BatchNormNumbers {
  Affine<A> affine;
  const A *at_center, *slope;
  const A *tau = nullptr, *share = nullptr;
};

// How a loop walks lines of x that lie one after another, each of `runs` runs of n elements; the runs of y, or of its
// gradient, begin at `padded` of a line of `padded_line` elements. A row (period 1) has one number of its channel:
// channels follow one another from `channel` on. Else a line's numbers repeat as columns.h has it.
struct Walk {
  int64_t lines, runs, n;
  const int64_t* padded;
  int64_t padded_line;
  int64_t period, channel, channels;
};

// How results are written: past the caches, where `stream` is set and the address allows it; and how many elements the
// thread reads after these, which come to the cache meanwhile.
struct Store {
  bool stream = false;
  int64_t rest = 0;
};

// Lines of n elements lie one after another: rows, of period 1, or one line whose numbers and sums have the period of
// columns.h. Sums are added to. sign is that of x, or 0.
template <class T>
struct Loops {
  using A = accumulator_t<T>;
  // the sums of |x|
  void (*abs_sums)(const T* x, int64_t period, int64_t lines, int64_t n, double* sums);
  // the mask of abs_mean
  void (*sign_mask)(const T* x, Planes mask, int64_t n);
  // y = soft_threshold(x, max(tau, 0)) + residual, and its mask
  void (*shrink)(const T* x, Values<A> tau, const T* residual, T* y, Planes mask, int64_t n, Store to);
  void (*shrink_lines)(const T* x, const A* tau, int64_t period, const T* residual, T* y, Planes mask, int64_t lines,
                       int64_t n, Store to);
  // The same with mean[row], which is set, the mean of |x|, and tau = alpha * mean, a row after another.
  void (*mean_shrink_rows)(const T* x, const A* alpha, A* mean, const T* residual, T* y, Planes mask, int64_t rows,
                           int64_t n, Store to);
  // the sums of active * sign * g
  void (*active_sums)(const T* g, ConstPlanes mask, int64_t period, int64_t lines, int64_t n, double* sums);
  // out = -active * sign * g, the gradient of each element's tau
  void (*tau_gradient)(const T* g, ConstPlanes mask, A* out, int64_t n);
  // out = g where soft_threshold's mask is active or open, else 0
  void (*pass)(const T* g, ConstPlanes mask, T* out, int64_t n, Store to);
  // out = active * g + sign * share; g may be null: 0
  void (*combine_lines)(const T* g, ConstPlanes mask, const A* share, int64_t period, T* out, int64_t lines, int64_t n,
                        Store to);
  // The gradients of mean_shrink_rows. Each of grad_mean, dalpha and dx may be null.
  void (*mean_shrink_rows_backward)(const T* g, ConstPlanes mask, const A* alpha, const A* mean, const A* grad_mean,
                                    A* dalpha, T* dx, int64_t rows, int64_t n, Store to);
  // Of each column, added to sums: x - center, and at sums[period] on its square. See columns.h.
  void (*centered_sums)(const T* x, const A* center, int64_t period, int64_t n, double* sums);
  // Of each row: its mean, and the sum of the squared distances from it.
  void (*moments)(const T* x, int64_t rows, int64_t n, double* mean, double* squares);
  // Of each line, added to sums: |norm(x)|, as relu_sums.
  void (*norm_abs_sums)(const T* x, Affine<A> affine, Walk walk, double* sums);
  // y = soft_threshold(norm(x), max(tau, 0)) + residual
  void (*norm_shrink)(const T* x, Affine<A> affine, const A* tau, const T* residual, T* y, Walk walk);
  void (*batch_norm_relu)(const T* x, Affine<A> affine, T* y, Walk walk);
  // Of each line, added to sums: active * g, active * g * (x - center); before a shrinkage also active * sign * g,
  // sign, sign * (x - center). A row has them one after another; else each has a period.
  void (*relu_sums)(const T* g, const T* x, BatchNormNumbers<A> with, Walk walk, double* sums);
  // dx, plus the shortcut's gradient where that is given, of the shape of x.
  void (*relu_combine)(const T* g, const T* x, BatchNormNumbers<A> with, const T* shortcut, T* dx, Walk walk);
  void (*shrink_sums)(const T* g, const T* x, BatchNormNumbers<A> with, Walk walk, double* sums);
  void (*shrink_combine)(const T* g, const T* x, BatchNormNumbers<A> with, const T* shortcut, T* dx, Walk walk);
  void (*widen)(const T* from, A* to, int64_t n);
  void (*narrow)(const A* from, T* to, int64_t n);
};

// out[r * out_row + j] = sum over k of a[r * a_row + k * a_k] * b[k * b_k + j], in the order of k.
template <class A>
struct Product {
  const A* a;
  int64_t a_row, a_k;
  const A* b;
  int64_t b_k;
  A* out;
  int64_t out_row;
  int64_t rows, terms, columns;
};

// For float and double.
template <class A>
void multiply(const Product<A>& p);

// A convolution along one axis, of positions that lie in groups of 4, 8 or 16 numbers, one for each channel: a vector
// holds whole groups, or a group whole vectors. Weights and biases are given for 16 numbers, whose channel of the
// result is their place in the group.
struct Taps {
  int64_t count, channels, group;
  const float* in[3];     // where each tap finds the channels of position 0
  const float* weight;    // (count, channels, 16)
  const int32_t* places;  // (channels, 16): where the channel is that a number of the result meets, in a vector
  bool relu = false;      // of the result
};

// out = bias + sum over the taps t and their channels i of in[t][i] * weight[t][i], or the ReLU of that, for n elements
// of out; of `in` it reads up to the next multiple of 16.
void convolve(const Taps& taps, const float* bias, float* out, int64_t n);

// Adds in[t][i] * g to sums[t * group + i] of 3 taps, and g to sums[3 * group], each a sum of 16 numbers. What `in` and
// g have up to the next multiple of 16 past n enters too.
void correlate(const Taps& taps, const float* g, int64_t n, double* sums);

template <class T>
const Loops<T>& loops();

const char* simd_level();

// Comes after writes past the caches, on the thread that made them.
void finish_streams();

}  // namespace drsn::cpu
