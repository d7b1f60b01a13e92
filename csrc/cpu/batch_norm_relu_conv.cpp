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
      layout.for_each_piece(task, [&](const Piece& piece) {
        const float* sample = x + piece.sample * layout.length * layout.channels;
        const int64_t at = piece.sample * p.conv.out_length + piece.begin;
        worker.make(piece, sample, p.out + at * p.conv.out_channels);
        if (shortcut) copy_shortcut(layout, piece, sample, p.shortcut_channels, shortcut + at * p.shortcut_channels);
      });
    }
  });
}

void batch_norm_relu_conv_backward(const BatchNormReluConvBackward& p) {
  const Rows& rows = p.rows;
  const NarrowConvolution& conv = p.conv;
  const NarrowLayout layout(p);
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
