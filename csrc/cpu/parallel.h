// How the CPU kernels share work through PyTorch's own thread pool. Sums are cut by sizes alone, so that no result
// depends on the number of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "loops.h"
#include "torch_api.h"

namespace drsn::cpu {

constexpr int64_t kGrain = 32768;  // elements below which a second thread costs more than it brings
constexpr int64_t kCached = 8192;  // elements that stay in a thread's own cache between two passes

// Calls run(T{}) with the element type of a real dtype.
template <class Run>
void with_type(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::kHalf:
      return run(Half{});
    case DType::kBFloat16:
      return run(BFloat16{});
    case DType::kFloat:
      return run(float{});
    case DType::kDouble:
      return run(double{});
    default:
      throw std::invalid_argument("x: expected a real type");
  }
}

template <class T>
const T* as(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
T* as(void* p) {
  return static_cast<T*>(p);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls run(task) for every task; `elements` is the size of one.
template <class Run>
void for_each_task(int64_t tasks, int64_t elements, const Run& run) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(elements, 1));
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) run(task);
  });
}

// Calls run(begin, n) for `step` of `count` things at a time; `elements` is the size of one thing.
template <class Run>
void for_each_range(int64_t count, int64_t step, int64_t elements, const Run& run) {
  for_each_task(ceil_div(count, step), std::min(count, step) * elements,
                [&](int64_t task) { run(task * step, std::min(step, count - task * step)); });
}

// Elements [begin, begin + n) of each of `count` lines from `line` on. More than one line comes whole.
struct Range {
  int64_t line, count, begin, n;
};

// How x is walked. A line is contiguous in memory and has one segment of the mask: a row, of width 1, or, in
// channels_last, a sample, whose elements belong to `width` channels in turn. A group is the lines that are summed
// before any of them is written: one, or the rows of a sample where per_sample.
struct Lines {
  int64_t count, length, width;
  int64_t per_group;
  int64_t sums;              // sums of a line: its width, or 5 in batch_norm_shrink's backward
  int64_t piece;             // elements of a partial sum: whole bytes of the mask, and whole positions of the channels
  int64_t cached = kCached;  // elements of the groups that a thread takes through both passes at a time

  Lines(const Rows& rows, bool per_sample)
      : count(rows.segments()),
        length(rows.segment_length()),
        width(rows.channels_last ? rows.channels : 1),
        per_group(per_sample && !rows.channels_last ? rows.channels : 1),
        sums(width),
        piece(std::max<int64_t>(8, kGrain / width / 8 * 8) * width) {}

  int64_t groups() const { return count / per_group; }
  int64_t rows_per_group() const { return per_group * width; }
  int64_t pieces() const { return ceil_div(length, piece); }
  int64_t offset(const Range& at) const { return at.line * length + at.begin; }
};

// Calls run(range) for every piece of every line; lines of one piece come several at a time.
template <class Run>
void for_each_piece(const Lines& lines, const Run& run) {
  const int64_t pieces = lines.pieces();
  if (pieces == 1) {
    return for_each_range(lines.count, std::max<int64_t>(1, kCached / lines.length), lines.length,
                          [&](int64_t line, int64_t count) { run(Range{line, count, 0, lines.length}); });
  }
  for_each_task(lines.count * pieces, lines.piece, [&](int64_t task) {
    const int64_t begin = task % pieces * lines.piece;
    run(Range{task / pieces, 1, begin, std::min(lines.piece, lines.length - begin)});
  });
}

// sum(range, sums) adds to the lines.sums sums of each line; finish(group, count, sums) gets those of `count` groups,
// one line after another; apply(range) comes after. A thread takes some groups through all three while they are in its
// cache. Where there are fewer groups than threads and a group is large, or where `together` wants one finish for all
// groups, every line is summed before the first apply. Both ways add the same sums in the same order.
template <class Sum, class Finish, class Apply>
void two_passes(const Lines& lines, bool together, const Sum& sum, const Finish& finish, const Apply& apply) {
  const int64_t pieces = lines.pieces(), width = lines.sums;
  const int64_t threads = torch::stable::get_num_threads(), group_size = lines.per_group * lines.length;
  if (!together && (lines.groups() >= threads || group_size <= kGrain)) {
    const int64_t step = std::clamp<int64_t>(lines.cached / group_size, 1, ceil_div(lines.groups(), threads));
    return for_each_range(lines.groups(), step, group_size, [&](int64_t group, int64_t groups) {
      const Range whole{group * lines.per_group, groups * lines.per_group, 0, lines.length};
      thread_local std::vector<double> sums, of_piece;
      sums.assign(whole.count * width, 0);
      if (pieces == 1) sum(whole, sums.data());
      for (int64_t i = 0; i < whole.count && pieces > 1; ++i) {
        for (int64_t begin = 0; begin < lines.length; begin += lines.piece) {
          of_piece.assign(width, 0);
          sum(Range{whole.line + i, 1, begin, std::min(lines.piece, lines.length - begin)}, of_piece.data());
          for (int64_t j = 0; j < width; ++j) sums[i * width + j] += of_piece[j];
        }
      }
      finish(group, groups, sums.data());
      apply(whole);
    });
  }

  std::vector<double> sums(lines.count * pieces * width);
  for_each_piece(lines, [&](const Range& at) { sum(at, &sums[(at.line * pieces + at.begin / lines.piece) * width]); });
  for (int64_t line = 0; line < lines.count && pieces > 1; ++line) {
    for (int64_t j = 0; j < width; ++j) {
      double all = 0;
      for (int64_t i = 0; i < pieces; ++i) all += sums[(line * pieces + i) * width + j];
      sums[line * width + j] = all;
    }
  }
  finish(0, lines.groups(), sums.data());
  for_each_piece(lines, apply);
}

}  // namespace drsn::cpu
