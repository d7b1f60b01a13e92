// gated_shrink of x = norm(z), where x is never in memory: z is read for the statistics of its channels, for the means
// of |x| and for the result; backward for five sums of each row, then for dz.
#include "backend.h"
#include "batch_norm.h"

namespace drsn::cpu {
namespace {

// Calls run(line, offset, walk) for the lines of a range: for all its rows at once, or for each sample in
// channels_last.
template <class Run>
void for_each_walk(const Rows& rows, const Lines& lines, const Range& at, const Run& run) {
  static constexpr int64_t kBegin = 0;
  const int64_t offset = lines.offset(at), channels = rows.channels;
  if (!rows.channels_last)
    return run(at.line, offset, Walk{at.count, 1, at.n, &kBegin, at.n, 1, at.line % channels, channels});
  for (int64_t l = 0; l < at.count; ++l)
    run(at.line + l, offset + l * lines.length, Walk{1, 1, at.n, &kBegin, at.n, period_of(channels), 0, 1});
}

// Adds kSums sums of each row of a range; add(offset, walk, sums) adds those of a walk, each of them over a period in
// channels_last.
template <int kSums, class Add>
void add_row_sums(const Rows& rows, const Lines& lines, const Range& at, double* sums, const Add& add) {
  for_each_walk(rows, lines, at, [&](int64_t line, int64_t offset, const Walk& walk) {
    if (!rows.channels_last) return add(line, offset, walk, sums);
    thread_local std::vector<double> columns;
    columns.assign(kSums * walk.period, 0);
    add(line, offset, walk, columns.data());
    double* of_line = sums + (line - at.line) * kSums * rows.channels;
    for (int s = 0; s < kSums; ++s) {
      fold_columns(&columns[s * walk.period], walk.period, rows.channels);
      for (int64_t c = 0; c < rows.channels; ++c) of_line[c * kSums + s] += columns[s * walk.period + c];
    }
  });
}

template <class T>
void forward(const BatchNormShrink& p) {
  using A = accumulator_t<T>;
  const auto& loop = loops<T>();
  const Rows& rows = p.rows;
  const Lines lines = lines_of_samples(rows, p.gate);
  const T* z = as<T>(p.x);
  const T* residual = as<T>(p.residual);
  set_statistics(p.input, rows, z, as<A>(p.input_state));
  const ChannelNorm<A> norm(p.input, rows, as<A>(p.input_state));
  const Affine<A> affine = norm.numbers().affine;
  GateForward<A> gate(p);
  two_passes(
      lines, p.gate.norm.kind == NormKind::kBatch,
      [&](const Range& at, double* sums) {
        add_row_sums<1>(rows, lines, at, sums, [&](int64_t, int64_t offset, const Walk& walk, double* to) {
          loop.norm_abs_sums(z + offset, affine, walk, to);
        });
      },
      [&](int64_t sample, int64_t count, const double* sums) { gate.run(sample, count, sums); },
      [&](const Range& at) {
        LineNumbers<A> tau(lines, gate.tau.data());
        for_each_walk(rows, lines, at, [&](int64_t line, int64_t offset, const Walk& walk) {
          loop.norm_shrink(z + offset, affine, tau.from(line), residual ? residual + offset : nullptr,
                           as<T>(p.y) + offset, walk);
        });
      });
}

template <class T>
void backward(const BatchNormShrinkBackward& p) {
  using A = accumulator_t<T>;
  constexpr int kSums = 5;
  const auto& loop = loops<T>();
  const Rows& rows = p.rows;
  Lines lines = lines_of_samples(rows, p.gate);
  lines.sums *= kSums;
  const T* g = as<T>(p.grad);
  const T* z = as<T>(p.z);
  ChannelNorm<A> norm(p.input, rows, as<A>(p.input_state));
  GateBackward<A> gate(p);
  const std::vector<A> tau = gate.thresholds();
  std::vector<double> row_sums(tau.size()), centered_row_sums(tau.size());
  const bool over_batch = p.input.kind == NormKind::kBatch;
  const auto finish = [&] {
    for (size_t row = 0; row < tau.size(); ++row) {
      norm.sums[row % rows.channels] += row_sums[row];
      norm.centered_sums[row % rows.channels] += centered_row_sums[row];
    }
    norm.finish(over_batch, p.dinput_weight, p.dinput_bias);
  };
  two_passes(
      lines, over_batch || p.gate.norm.kind == NormKind::kBatch,
      [&](const Range& at, double* sums) {
        LineNumbers<A> of_tau(lines, tau.data());
        add_row_sums<kSums>(rows, lines, at, sums, [&](int64_t line, int64_t offset, const Walk& walk, double* to) {
          BatchNormNumbers<A> with = norm.numbers();
          with.tau = of_tau.from(line);
          loop.shrink_sums(g + offset, z + offset, with, walk, to);
        });
      },
      [&](int64_t sample, int64_t count, const double* sums) {
        const int64_t first = sample * rows.channels;
        gate.run(sample, count, sums + 2, kSums);
        for (int64_t row = first; row < first + count * rows.channels; ++row) {
          const double* of_row = sums + kSums * (row - first);
          row_sums[row] = of_row[0] + gate.share[row] * of_row[3];
          centered_row_sums[row] = of_row[1] + gate.share[row] * of_row[4];
        }
        if (over_batch) finish();
      },
      [&](const Range& at) {
        if (!p.dx) return;
        LineNumbers<A> of_tau(lines, tau.data()), share(lines, gate.share.data());
        for_each_walk(rows, lines, at, [&](int64_t line, int64_t offset, const Walk& walk) {
          BatchNormNumbers<A> with = norm.numbers();
          with.tau = of_tau.from(line);
          with.share = share.from(line);
          loop.shrink_combine(g + offset, z + offset, with, nullptr, as<T>(p.dx) + offset, walk);
        });
      });
  if (!over_batch) finish();
  gate.write_parameters();
}

}  // namespace

void batch_norm_shrink(const BatchNormShrink& p) {
  with_type(p.dtype, [&](auto type) { forward<decltype(type)>(p); });
}

void batch_norm_shrink_backward(const BatchNormShrinkBackward& p) {
  with_type(p.dtype, [&](auto type) { backward<decltype(type)>(p); });
}

}  // namespace drsn::cpu
