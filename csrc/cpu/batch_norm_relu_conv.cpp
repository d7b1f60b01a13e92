// y = convolution(relu(norm(x))) of few channels: the activation of a piece of x is made where a thread's cache holds
// it, once forward and once more backward, and never stored.
#include "backend.h"
#include "narrow_convolution.h"

namespace drsn::cpu {

void batch_norm_relu_conv(const BatchNormReluConv& p) {
  const auto* x = as<float>(p.x);
  auto *state = as<float>(p.state), *shortcut = as<float>(p.shortcut);
  set_statistics(p.norm, p.rows, x, state);
  const NarrowForward forward(p, state);
  const NarrowLayout& layout = forward.layout;
  for_each_part(layout.tasks(), kTask * kWork, [&](int64_t begin, int64_t end) {
    NarrowForward::Worker worker(forward);
    for (int64_t task = begin; task < end; ++task) {
      layout.for_each_piece_of_task(task, [&](const Piece& piece) {
        const float* sample = x + piece.sample * layout.length * layout.channels;
        const int64_t at = piece.sample * p.conv.out_length + piece.begin;
        worker.make(piece, sample, p.out + at * p.conv.out_channels);
        if (shortcut) copy_shortcut(layout, piece, sample, p.shortcut_channels, shortcut + at * p.shortcut_channels);
      });
    }
  });
}

namespace {

// The backward direction: the gradient of the activation, and sums for those of the parameters.
class NarrowBackward {
 public:
  const NarrowLayout layout;
  const int64_t norm_sums, conv_sums;  // of a task: BatchNorm's, then those of `correlate`
  ChannelNorm<float> norm;

  explicit NarrowBackward(const BatchNormReluConvBackward& p)
      : layout(p),
        norm_sums(2 * layout.channels),
        conv_sums((kTaps * layout.group + 1) * kUnit),
        norm(p.norm, p.rows, as<float>(p.state)),
        p_(p),
        places_(places_of(layout.group)) {
    for (int64_t phase = 0; phase < layout.stride; ++phase) {
      const int64_t count = taps_of(phase);
      turned_.push_back(
          spread(count, p.conv.out_channels, layout.channels, layout.group, [&](int64_t t, int64_t o, int64_t i) {
            return p.conv.weight[(o * layout.channels + i) * kTaps + phase + layout.stride * (count - 1 - t)];
          }));
    }
  }

  // What a thread needs to go through pieces.
  class Worker {
   public:
    explicit Worker(const NarrowBackward& backward)
        : b_(backward), activation_(b_.layout, b_.p_.rows), gradient_(b_.layout.group) {}

    void add(const Piece& piece, double* sums) {
      const NarrowLayout& layout = b_.layout;
      const int64_t width = layout.conv.out_channels;
      gradient_.fill(layout.around(piece), b_.p_.grad_conv + piece.sample * layout.conv.out_length * width, 0, width);
      if (b_.p_.dconv_weight) {
        Taps taps = taps_for(kTaps, layout.channels, nullptr);
        activation_.make(piece, as<float>(b_.p_.x) + start_of(piece), b_.norm.numbers().affine);
        activation_.point(taps);
        correlate(taps, gradient_.at(1), (piece.end - piece.begin) * layout.group, sums + b_.norm_sums);
      }
      if (!b_.p_.dx) return;
      for (int64_t phase = 0; phase < layout.stride; ++phase) make_gradient(piece, phase);
      const Positions own = layout.made(piece, 0);
      const int64_t from = std::max<int64_t>(0, own.first) * layout.channels,
                    to = std::min(layout.length, own[own.count]) * layout.channels;
      add_relu_sums(as<float>(b_.p_.dx) + start_of(piece) + from, as<float>(b_.p_.x) + start_of(piece) + from, b_.norm,
                    walk_of(b_.p_.rows, to - from), layout.channels, sums);
    }

   private:
    Taps taps_for(int64_t count, int64_t channels, const float* weight) const {
      return {count, channels, b_.layout.group, {}, weight, b_.places_.data()};
    }

    int64_t start_of(const Piece& piece) const { return piece.sample * b_.layout.length * b_.layout.channels; }

    // The gradient of every stride-th position that the piece makes, from the phase-th on.
    void make_gradient(const Piece& piece, int64_t phase) {
      const NarrowLayout& layout = b_.layout;
      const Positions made = layout.made(piece, phase);
      const int64_t first = made.begin(), count = made.end() - first;
      if (count == 0) return;
      static constexpr float kNone[kUnit] = {};
      Taps taps = taps_for(b_.taps_of(phase), layout.conv.out_channels, b_.turned_[phase].data());
      for (int64_t t = 0; t < taps.count; ++t) taps.in[t] = gradient_.at(first + t + (phase > 0));
      float* to = as<float>(b_.p_.dx) + start_of(piece) + made[first] * layout.channels;
      if (layout.stride == 1 && layout.channels == layout.group) return convolve(taps, kNone, to, count * layout.group);
      groups_.resize(count * layout.group);
      convolve(taps, kNone, groups_.data(), count * layout.group);
      copy_chunks(groups_.data(), layout.group, to, layout.stride * layout.channels, count, layout.channels);
    }

    const NarrowBackward& b_;
    Activation activation_;
    Plane gradient_;
    std::vector<float> groups_;
  };

  // From the sums of all pieces to the gradients.
  void finish(const double* sums) {
    const int64_t channels = layout.channels;
    std::copy_n(sums, channels, norm.sums.data());
    std::copy_n(sums + channels, channels, norm.centered_sums.data());
    norm.finish(p_.norm.kind == NormKind::kBatch, p_.dweight, p_.dbias);
    const auto of_channel = [&](int64_t row, int64_t o) {
      double sum = 0;
      for (int64_t j = o; j < kUnit; j += layout.group) sum += sums[norm_sums + row * kUnit + j];
      return float(sum);
    };
    for (int64_t o = 0; o < layout.conv.out_channels && p_.dconv_weight; ++o) {
      for (int64_t i = 0; i < channels; ++i) {
        for (int64_t t = 0; t < kTaps; ++t)
          p_.dconv_weight[(o * channels + i) * kTaps + t] = of_channel(t * layout.group + i, o);
      }
      p_.dconv_bias[o] = of_channel(kTaps * layout.group, o);
    }
    if (p_.need_x) set_dx<float>(p_, p_.rows, norm);
  }

 private:
  // How many taps meet every stride-th position from the phase-th on.
  int64_t taps_of(int64_t phase) const { return (kTaps - 1 - phase) / layout.stride + 1; }

  const BatchNormReluConvBackward& p_;
  const std::vector<int32_t> places_;
  std::vector<std::vector<float>> turned_;  // the weights of those taps, from the last to the first
};

}  // namespace

void batch_norm_relu_conv_backward(const BatchNormReluConvBackward& p) {
  NarrowBackward backward(p);
  const NarrowLayout& layout = backward.layout;
  const int64_t size = backward.norm_sums + backward.conv_sums;
  std::vector<double> sums(layout.tasks() * size), all(size);
  for_each_part(layout.tasks(), kTask * kWork, [&](int64_t begin, int64_t end) {
    NarrowBackward::Worker worker(backward);
    for (int64_t task = begin; task < end; ++task)
      layout.for_each_piece_of_task(task, [&](const Piece& piece) { worker.add(piece, &sums[task * size]); });
  });
  for (size_t i = 0; i < sums.size(); ++i) all[i % size] += sums[i];
  backward.finish(all.data());
}

}  // namespace drsn::cpu
