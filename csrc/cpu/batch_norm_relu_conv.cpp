// y = convolution(relu(norm(x))) of few channels: the activation of a piece of x is made where a thread's cache holds
// it, once forward and once more backward, and never stored.
#include <cstring>

#include "backend.h"
#include "batch_norm.h"
#include "chunks.h"

namespace drsn::cpu {
namespace {

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
struct Layout {
  const NarrowConvolution& conv;
  int64_t stride, channels, length, group, piece_length, pieces_of_sample, pieces, pieces_of_task;

  template <class P>
  explicit Layout(const P& p) : conv(p.conv), stride(p.stride), channels(p.rows.channels), length(p.rows.length) {
    const int64_t most = std::max(channels, conv.out_channels);
    group = most <= 4 ? 4 : most <= 8 ? 8 : 16;
    piece_length = std::min(conv.out_length, kPiece / group);
    pieces_of_sample = ceil_div(conv.out_length, piece_length);
    pieces = p.rows.samples * pieces_of_sample;
    pieces_of_task = std::max<int64_t>(1, kTask / (piece_length * group));
  }

  int64_t tasks() const { return ceil_div(pieces, pieces_of_task); }

  template <class Run>
  void for_each_piece(int64_t task, const Run& run) const {
    for (int64_t i = task * pieces_of_task; i < std::min(pieces, (task + 1) * pieces_of_task); ++i) {
      const int64_t begin = i % pieces_of_sample * piece_length;
      run(Piece{i / pieces_of_sample, begin, std::min(begin + piece_length, conv.out_length)});
    }
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
};

// The channel that each number of a result meets, in a vector: that of its position.
std::vector<int32_t> places_of(int64_t group) {
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
Walk walk_of(const Rows& rows, int64_t n) {
  static constexpr int64_t kStart = 0;
  return {1, 1, n, &kStart, 0, period_of(rows), 0, 1};
}

// relu(norm(x)) as the taps of a convolution meet it, by a thread.
class Activation {
 public:
  Activation(const Layout& layout, const Rows& rows) : layout_(layout), rows_(rows) {
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

  const Layout& layout_;
  const Rows& rows_;
  std::vector<Plane> planes_;
  std::vector<float> line_;
};

}  // namespace

void batch_norm_relu_conv(const BatchNormReluConv& p) {
  const Rows& rows = p.rows;
  const NarrowConvolution& conv = p.conv;
  const Layout layout(p);
  const int64_t channels = layout.channels, width = conv.out_channels, group = layout.group;
  const auto* x = as<float>(p.x);
  auto* shortcut = as<float>(p.shortcut);
  set_statistics(p.norm, rows, x, as<float>(p.state));
  const ChannelNorm<float> norm(p.norm, rows, as<float>(p.state));
  const std::vector<int32_t> places = places_of(group);
  const std::vector<float> weight = spread(kTaps, channels, width, group, [&](int64_t t, int64_t i, int64_t o) {
    return conv.weight[(o * channels + i) * kTaps + t];
  });
  const std::vector<float> bias =
      spread(1, 1, width, group, [&](int64_t, int64_t, int64_t o) { return p.conv_bias ? p.conv_bias[o] : 0; });
  for_each_part(layout.tasks(), kTask * kWork, [&](int64_t begin, int64_t end) {
    Activation activation(layout, rows);
    std::vector<float> groups;
    Taps taps{kTaps, channels, group, {}, weight.data(), places.data()};
    for (int64_t task = begin; task < end; ++task) {
      layout.for_each_piece(task, [&](const Piece& piece) {
        const float* sample = x + piece.sample * layout.length * channels;
        const int64_t at = piece.sample * conv.out_length + piece.begin, n = piece.end - piece.begin;
        activation.make(piece, sample, norm.numbers().affine);
        activation.point(taps);
        if (width == group) {
          convolve(taps, bias.data(), p.out + at * width, n * group);
        } else {
          groups.resize(n * group);
          convolve(taps, bias.data(), groups.data(), n * group);
          copy_chunks(groups.data(), group, p.out + at * width, width, n, width);
        }
        if (!shortcut) return;
        float* to = shortcut + at * p.shortcut_channels;
        if (p.shortcut_channels > channels) std::fill_n(to, n * p.shortcut_channels, 0.0f);
        copy_chunks(sample + layout.stride * piece.begin * channels, layout.stride * channels,
                    to + (p.shortcut_channels - channels) / 2, p.shortcut_channels, n, channels);
      });
    }
  });
}

void batch_norm_relu_conv_backward(const BatchNormReluConvBackward& p) {
  const Rows& rows = p.rows;
  const NarrowConvolution& conv = p.conv;
  const Layout layout(p);
  const int64_t channels = layout.channels, width = conv.out_channels, group = layout.group, stride = layout.stride;
  const auto *x = as<float>(p.x), *grad = p.grad_conv;
  auto* dx = as<float>(p.dx);
  ChannelNorm<float> norm(p.norm, rows, as<float>(p.state));
  const std::vector<int32_t> places = places_of(group);
  const std::vector<float> none(kUnit);
  // Of each phase of the positions of x, the taps that meet them, from the last to the first.
  std::vector<std::vector<float>> turned;
  for (int64_t phase = 0; phase < stride; ++phase) {
    const int64_t count = (kTaps - 1 - phase) / stride + 1;
    turned.push_back(spread(count, width, channels, group, [&](int64_t t, int64_t o, int64_t i) {
      return conv.weight[(o * channels + i) * kTaps + phase + stride * (count - 1 - t)];
    }));
  }
  const int64_t norm_sums = 2 * channels, conv_sums = (kTaps * group + 1) * kUnit;
  std::vector<double> sums(layout.tasks() * (norm_sums + conv_sums));
  for_each_part(layout.tasks(), kTask * kWork, [&](int64_t begin, int64_t end) {
    Activation activation(layout, rows);
    Plane gradient(group);
    std::vector<float> groups;
    for (int64_t task = begin; task < end; ++task) {
      double* task_sums = &sums[task * (norm_sums + conv_sums)];
      layout.for_each_piece(task, [&](const Piece& piece) {
        const int64_t n = piece.end - piece.begin, at = piece.sample * layout.length * channels;
        gradient.fill(layout.around(piece), grad + piece.sample * conv.out_length * width, 0, width);
        if (p.dconv_weight) {
          Taps taps{kTaps, channels, group, {}, nullptr, places.data()};
          activation.make(piece, x + at, norm.numbers().affine);
          activation.point(taps);
          correlate(taps, gradient.at(1), n * group, task_sums + norm_sums);
        }
        if (!dx) return;
        for (int64_t phase = 0; phase < stride; ++phase) {
          const Positions made = layout.made(piece, phase);
          const int64_t first = made.begin(), count = made.end() - first;
          if (count == 0) continue;
          Taps taps{(kTaps - 1 - phase) / stride + 1, width, group, {}, turned[phase].data(), places.data()};
          for (int64_t t = 0; t < taps.count; ++t) taps.in[t] = gradient.at(first + t + (phase > 0));
          float* to = dx + at + made[first] * channels;
          if (stride == 1 && channels == group) {
            convolve(taps, none.data(), to, count * group);
          } else {
            groups.resize(count * group);
            convolve(taps, none.data(), groups.data(), count * group);
            copy_chunks(groups.data(), group, to, stride * channels, count, channels);
          }
        }
        const Positions own = layout.made(piece, 0);
        const int64_t from = std::max<int64_t>(0, own.first), to = std::min(layout.length, own[own.count]);
        const int64_t elements = (to - from) * channels;
        add_relu_sums(dx + at + from * channels, x + at + from * channels, norm, walk_of(rows, elements), channels,
                      task_sums);
      });
    }
  });
  std::vector<double> all(norm_sums + conv_sums);
  for (size_t i = 0; i < sums.size(); ++i) all[i % all.size()] += sums[i];
  std::copy_n(all.data(), channels, norm.sums.data());
  std::copy_n(all.data() + channels, channels, norm.centered_sums.data());
  norm.finish(p.norm.kind == NormKind::kBatch, p.dweight, p.dbias);
  const auto of_channel = [&](int64_t row, int64_t o) {
    double sum = 0;
    for (int64_t j = o; j < kUnit; j += group) sum += all[norm_sums + row * kUnit + j];
    return float(sum);
  };
  for (int64_t o = 0; o < width && p.dconv_weight; ++o) {
    for (int64_t i = 0; i < channels; ++i) {
      for (int64_t t = 0; t < kTaps; ++t) p.dconv_weight[(o * channels + i) * kTaps + t] = of_channel(t * group + i, o);
    }
    p.dconv_bias[o] = of_channel(kTaps * group, o);
  }
  if (p.need_x) set_dx<float>(p, rows, norm);
}

}  // namespace drsn::cpu
