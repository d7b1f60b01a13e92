// BatchNorm over the channels of x: its statistics, its numbers as the loops take them, and x cut into tiles.
#pragma once

#include "gate.h"
#include "period.h"

namespace drsn::cpu {

// Writes mean and 1 / sqrt(variance + eps) of every channel of x to `state`.
template <class T>
void set_statistics(const Norm& norm, const Rows& rows, const T* x, accumulator_t<T>* state);

inline int64_t period_of(const Rows& rows) { return rows.channels_last ? period_of(rows.channels) : 1; }

// A number of each channel as the loops take it.
template <class A>
std::vector<A> along_lines(const std::vector<A>& values, const Rows& rows) {
  if (!rows.channels_last) return values;
  std::vector<A> out(period_of(rows) + kPastPeriod);
  repeat(values.data(), period_of(rows), rows.channels, out.data());
  return out;
}

// norm(x) and its gradient, a number of each channel. The gradient comes from the sums of g and of g * (x - mean).
template <class A>
struct ChannelNorm {
  std::vector<A> center, scale, bias, rstd;
  std::vector<double> sums, centered_sums;
  std::vector<A> at_center, slope;  // empty where the statistics are constants

  ChannelNorm(const Norm& norm, const Rows& rows, const A* state);

  BatchNormNumbers<A> numbers() const {
    return {{center.data(), scale.data(), bias.data()},
            at_center.empty() ? nullptr : at_center.data(),
            slope.empty() ? nullptr : slope.data()};
  }

  // From the sums to the gradients of the parameters, which may be null, and where over_batch to at_center and slope.
  void finish(bool over_batch, void* dweight, void* dbias);

 private:
  const Rows& rows_;
};

// Adds the sums of g m and g m (x - mean) of each channel, m = norm(x) > 0, in channels_last: sums[0] and
// sums[channels] on. g and x have the walk's elements.
template <class T>
void add_relu_sums(const T* g, const T* x, const ChannelNorm<accumulator_t<T>>& norm, const Walk& walk,
                   int64_t channels, double* sums);

// Writes dx of batch_norm_relu, once norm has the sums; p.grad may be p.dx. For float as well in batch_norm_relu_conv.
template <class T>
void set_dx(const BatchNormReluBackward& p, const Rows& rows, const ChannelNorm<accumulator_t<T>>& norm);

// Lines [line, line + lines) of x, whole or, of a single one, spans [begin, begin + spans).
struct Tile {
  int64_t line, lines, begin, spans;
};

// x cut into tiles of about as many elements. A line is a row, or a sample in channels_last; its spans are positions,
// or runs along the innermost axis where `in_runs`, which the padding of y asks for.
class Tiles {
 public:
  Tiles(const Rows& rows, const Spatial& spatial, bool in_runs, int64_t elements);

  int64_t count() const { return count_; }
  int64_t elements() const { return elements_; }
  int64_t pieces() const { return pieces_; }
  int64_t piece(const Tile& tile) const { return tile.begin / piece_; }
  Tile operator[](int64_t index) const;
  Walk walk(const Tile& tile) const;
  int64_t offset(const Tile& tile) const { return tile.line * spans_ * span_ + tile.begin * span_; }
  int64_t size(const Tile& tile) const { return tile.lines * tile.spans * span_; }
  int64_t padded_offset(const Tile& tile) const {
    return tile.line * padded_line_ + (in_runs_ ? 0 : tile.begin * span_);
  }

  // Calls zero(begin, n) for what lies between the runs of a padded tile.
  template <class Zero>
  void for_each_gap(const Tile& tile, const Zero& zero) const {
    for (int64_t line = 0; line < tile.lines && padded_line_ > spans_ * span_; ++line) {
      const int64_t at = line * padded_line_;
      if (tile.begin == 0) zero(at, padded_[0]);
      for (int64_t run = tile.begin; run < tile.begin + tile.spans; ++run) {
        const int64_t end = padded_[run] + span_;
        zero(at + end, (run + 1 < spans_ ? padded_[run + 1] : padded_line_) - end);
      }
    }
  }

 private:
  const Rows& rows_;
  bool in_runs_;
  int64_t span_, spans_, padded_line_;  // elements of a span, spans of a line
  int64_t piece_, pieces_, lines_per_tile_, count_, elements_;
  std::vector<int64_t> padded_;
};

}  // namespace drsn::cpu
