// A convolution of few channels behind BatchNorm and ReLU: its pieces, their activations where the taps find them, and
// its forward direction.
#pragma once

#include "batch_norm.h"
#include "chunks.h"

namespace drsn::cpu {

constexpr int64_t kUnit = 16, kTaps = 3;  // of Taps
constexpr int64_t kPiece = 8192;          // elements of the result that a piece has at most
constexpr int64_t kTask = 16384;          // and of the pieces of a task
constexpr int64_t kWork = 4;              // how much more an element costs than one that is only read

// Positions first, first + step, ... of a signal that has `length` of them.
struct Positions {
  int64_t first, step, count, length;

  int64_t begin() const { return std::min(count, std::max<int64_t>(0, ceil_div(-first, step))); }  // those that exist
  int64_t end() const { return std::max(begin(), std::min(count, ceil_div(length - first, step))); }
  int64_t operator[](int64_t index) const { return first + step * index; }
};

// Some positions in groups, and zeros for those that do not exist and for what the loops read behind them.
class Plane {
 public:
  explicit Plane(int64_t group) : group_(group) {}

  float* at(int64_t index) { return memory_.data() + index * group_; }

  // All but the existing positions are zero then.
  void clear(const Positions& positions) {
    const auto size = size_t(positions.count * group_ + 2 * kUnit);
    if (memory_.size() < size) memory_.resize(size);
    std::fill(memory_.data(), at(positions.begin()), 0.0f);
    std::fill(at(positions.end()), memory_.data() + size, 0.0f);
  }

  // `signal` has position `from` and those behind it.
  void fill(const Positions& positions, const float* signal, int64_t from, int64_t width) {
    clear(positions);
    const int64_t begin = positions.begin();
    copy_chunks(signal + (positions[begin] - from) * width, positions.step * width, at(begin), group_,
                positions.end() - begin, width);
  }

 private:
  int64_t group_;
  std::vector<float> memory_;
};

// Positions [begin, end) of the result of one sample.
struct Piece {
  int64_t sample, begin, end;
};

// What both directions know of the convolution: its pieces, and where each finds its positions.
struct NarrowLayout {
  const NarrowConvolution& conv;
  int64_t stride, channels, length, group, piece_length, pieces_of_sample, pieces, pieces_of_task;

  template <class P>
  explicit NarrowLayout(const P& p) : conv(p.conv), stride(p.stride), channels(p.rows.channels), length(p.rows.length) {
    const int64_t most = std::max(channels, conv.out_channels);
    group = most <= 4 ? 4 : most <= 8 ? 8 : 16;
    piece_length = std::min(conv.out_length, kPiece / group);
    pieces_of_sample = ceil_div(conv.out_length, piece_length);
    pieces = p.rows.samples * pieces_of_sample;
    pieces_of_task = std::max<int64_t>(1, kTask / (piece_length * group));
  }

  int64_t tasks() const { return ceil_div(pieces, pieces_of_task); }

  template <class Run>
  void for_each_piece_of_task(int64_t task, const Run& run) const {
    for_each_piece(task * pieces_of_task, std::min(pieces, (task + 1) * pieces_of_task), run);
  }
  template <class Run>
  void for_each_piece_of_sample(int64_t sample, const Run& run) const {
    for_each_piece(sample * pieces_of_sample, (sample + 1) * pieces_of_sample, run);
  }

  // Every stride-th position that a piece meets, from the phase-th on.
  Positions met(const Piece& piece, int64_t phase) const {
    const int64_t count = piece.end - piece.begin + (phase > 0 ? 0 : stride > 1 ? 1 : 2);
    return {stride * piece.begin + phase - conv.before, stride, count, length};
  }
  // Those whose gradient it makes: with stride 1 its own, which it meets in the middle.
  Positions made(const Piece& piece, int64_t phase) const {
    const int64_t first = stride > 1 ? stride * piece.begin + phase - conv.before : piece.begin;
    return {first, stride, piece.end - piece.begin, length};
  }
  // Of the result those whose gradients they need.
  Positions around(const Piece& piece) const {
    return {piece.begin - 1, 1, piece.end - piece.begin + 2, conv.out_length};
  }

 private:
  template <class Run>
  void for_each_piece(int64_t first, int64_t end, const Run& run) const {
    for (int64_t i = first; i < end; ++i) {
      const int64_t begin = i % pieces_of_sample * piece_length;
      run(Piece{i / pieces_of_sample, begin, std::min(begin + piece_length, conv.out_length)});
    }
  }
};

// The channel that each number of a result meets, in a vector: that of its position.
inline std::vector<int32_t> places_of(int64_t group) {
  std::vector<int32_t> places(kUnit * kUnit);
  for (int64_t i = 0; i < kUnit * kUnit; ++i) places[i] = int32_t(i % kUnit / group * group + i / kUnit);
  return places;
}

// weight(tap, in, out) of some taps, for each number of a unit.
template <class Weight>
std::vector<float> spread(int64_t taps, int64_t in, int64_t out, int64_t group, const Weight& weight) {
  std::vector<float> all(taps * in * kUnit);
  for (int64_t row = 0; row < taps * in; ++row) {
    for (int64_t o = 0; o < out; ++o) {
      const float w = weight(row / in, row % in, o);
      for (int64_t j = o; j < kUnit; j += group) all[row * kUnit + j] = w;
    }
  }
  return all;
}

// n elements of channels_last.
inline Walk walk_of(const Rows& rows, int64_t n) {
  static constexpr int64_t kStart = 0;
  return {1, 1, n, &kStart, 0, period_of(rows), 0, 1};
}

// relu(norm(x)) as the taps of a convolution meet it, by a thread.
class Activation {
 public:
  Activation(const NarrowLayout& layout, const Rows& rows) : layout_(layout), rows_(rows) {
    for (int64_t phase = 0; phase < layout.stride; ++phase) planes_.emplace_back(layout.group);
  }

  // x has the sample's first position.
  void make(const Piece& piece, const float* x, const Affine<float>& affine) {
    const Positions first = layout_.met(piece, 0), last = layout_.met(piece, layout_.stride - 1);
    const int64_t width = layout_.channels;
    if (layout_.stride == 1 && width == layout_.group) {
      planes_[0].clear(first);
      const int64_t begin = first.begin();
      normalise(x + first[begin] * width, (first.end() - begin) * width, affine, planes_[0].at(begin));
      return;
    }
    const int64_t from = std::max<int64_t>(0, first.first);
    const int64_t to = std::min(layout_.length, std::max(first[first.count - 1], last[last.count - 1]) + 1);
    line_.resize((to - from) * width);
    normalise(x + from * width, (to - from) * width, affine, line_.data());
    for (int64_t phase = 0; phase < layout_.stride; ++phase)
      planes_[phase].fill(layout_.met(piece, phase), line_.data(), from, width);
  }

  // Where the taps find the piece's first position.
  void point(Taps& taps) {
    for (int64_t t = 0; t < kTaps; ++t) taps.in[t] = planes_[t % layout_.stride].at(t / layout_.stride);
  }

 private:
  void normalise(const float* x, int64_t n, const Affine<float>& affine, float* y) const {
    loops<float>().batch_norm_relu(x, affine, y, walk_of(rows_, n));
  }

  const NarrowLayout& layout_;
  const Rows& rows_;
  std::vector<Plane> planes_;
  std::vector<float> line_;
};

// The forward direction.
class NarrowForward {
 public:
  const NarrowLayout layout;

  // state: mean and rstd of the channels of x.
  NarrowForward(const BatchNormReluConv& p, const float* state)
      : layout(p), rows_(p.rows), norm_(p.norm, p.rows, state), places_(places_of(layout.group)) {
    const NarrowConvolution& conv = p.conv;
    weight_ = spread(kTaps, layout.channels, conv.out_channels, layout.group, [&](int64_t t, int64_t i, int64_t o) {
      return conv.weight[(o * layout.channels + i) * kTaps + t];
    });
    bias_ = spread(1, 1, conv.out_channels, layout.group,
                   [&](int64_t, int64_t, int64_t o) { return p.conv_bias ? p.conv_bias[o] : 0; });
  }

  // Makes the result what comes of it behind the BatchNorm and the ReLU of the next convolution.
  void activate(const NarrowForward& next) {
    const ChannelNorm<float>& norm = next.norm_;
    relu_ = true;
    for (int64_t j = 0; j < kUnit; ++j) {
      const int64_t o = j % layout.group;
      if (o >= layout.conv.out_channels) continue;
      for (size_t row = 0; row < weight_.size() / kUnit; ++row) weight_[row * kUnit + j] *= norm.scale[o];
      bias_[j] = (bias_[j] - norm.center[o]) * norm.scale[o] + norm.bias[o];
    }
  }

  // What a thread needs to make pieces of the result.
  class Worker {
   public:
    explicit Worker(const NarrowForward& forward)
        : forward_(forward),
          activation_(forward.layout, forward.rows_),
          taps_{kTaps,        forward.layout.channels, forward.layout.group,
                {},           forward.weight_.data(),  forward.places_.data(),
                forward.relu_} {}

    // x has the sample's first position, out the piece's.
    void make(const Piece& piece, const float* x, float* out) {
      meet(piece, x);
      write(piece, out);
    }

    // The same, in groups.
    void make_groups(const Piece& piece, const float* x, float* groups) {
      meet(piece, x);
      convolve(taps_, forward_.bias_.data(), groups, (piece.end - piece.begin) * taps_.group);
    }

    // From an activated sample, whose positions lie in groups behind a position of zeros; with stride 1.
    void make_from(Plane& activated, const Piece& piece, float* out) {
      for (int64_t t = 0; t < kTaps; ++t) taps_.in[t] = activated.at(piece.begin + t);
      write(piece, out);
    }

   private:
    void meet(const Piece& piece, const float* x) {
      activation_.make(piece, x, forward_.norm_.numbers().affine);
      activation_.point(taps_);
    }

    void write(const Piece& piece, float* out) {
      const int64_t width = forward_.layout.conv.out_channels, n = piece.end - piece.begin;
      if (width == taps_.group) return convolve(taps_, forward_.bias_.data(), out, n * width);
      groups_.resize(n * taps_.group);
      convolve(taps_, forward_.bias_.data(), groups_.data(), n * taps_.group);
      copy_chunks(groups_.data(), taps_.group, out, width, n, width);
    }

    const NarrowForward& forward_;
    Activation activation_;
    Taps taps_;
    std::vector<float> groups_;
  };

 private:
  const Rows& rows_;
  const ChannelNorm<float> norm_;
  const std::vector<int32_t> places_;
  std::vector<float> weight_, bias_;
  bool relu_ = false;
};

// The shortcut of a piece: every stride-th position of a sample, its channels between channels of zeros.
inline void copy_shortcut(const NarrowLayout& layout, const Piece& piece, const float* x, int64_t channels,
                          float* shortcut) {
  const int64_t n = piece.end - piece.begin, more = channels - layout.channels;
  if (more > 0) std::fill_n(shortcut, n * channels, 0.0f);
  copy_chunks(x + layout.stride * piece.begin * layout.channels, layout.stride * layout.channels, shortcut + more / 2,
              channels, n, layout.channels);
}

}  // namespace drsn::cpu
