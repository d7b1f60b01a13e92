// A residual unit of few channels in evaluation: a thread takes some samples through both convolutions, the gate and
// the sum with the shortcut while they are in its cache.
#include "backend.h"
#include "gate.h"
#include "narrow_convolution.h"

namespace drsn::cpu {
namespace {

std::vector<float> running_state(const BatchNormReluConv& p) {
  std::vector<float> state(2 * p.rows.channels);
  running_statistics(p.norm, p.rows.channels, state.data(), &state[p.rows.channels]);
  return state;
}

}  // namespace

void residual_unit(const ResidualUnit& p) {
  const std::vector<float> state1 = running_state(p.first), state2 = running_state(p.second);
  NarrowForward first(p.first, state1.data());
  const NarrowForward second(p.second, state2.data());
  first.activate(second);
  const NarrowLayout &layout = first.layout, &next = second.layout;
  const int64_t channels = next.channels, length = next.length;
  const auto* x = as<float>(p.first.x);
  auto *y = p.second.out, *shortcut = as<float>(p.first.shortcut);
  Lines lines = lines_of_samples(p.shrink.rows, p.shrink.gate);
  lines.cached /= 2;  // the cache holds x as well as y
  const Segments none(nullptr, lines, kShrinkPlanes);
  GateForward<float> gate(p.shrink);
  static_assert(ResidualUnit::kMostOfSample <= kGrain, "a sample that two threads share would be convolved by both");
  two_passes(
      lines, false,
      [&](const Range& at, double* sums) {
        NarrowForward::Worker before(first), behind(second);
        Plane between(next.group);
        between.clear({-1, 1, length + 2, length});
        for (int64_t n = at.line; n < at.line + at.count; ++n) {
          const float* sample = x + n * layout.length * layout.channels;
          const int64_t to = n * length;
          layout.for_each_piece_of_sample(n, [&](const Piece& piece) {
            before.make_groups(piece, sample, between.at(1 + piece.begin));
            if (shortcut) copy_shortcut(layout, piece, sample, channels, shortcut + (to + piece.begin) * channels);
          });
          next.for_each_piece_of_sample(
              n, [&](const Piece& piece) { behind.make_from(between, piece, y + (to + piece.begin) * channels); });
        }
        add_abs_sums(lines, at, y, sums);
      },
      [&](int64_t sample, int64_t count, const double* sums) { gate.run(sample, count, sums); },
      [&](const Range& at) { shrink_lines(lines, at, y, gate.tau.data(), as<float>(p.shrink.residual), y, none); });
}

}  // namespace drsn::cpu
