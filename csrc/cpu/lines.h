// x as lines, in either layout: how they are walked in one pass or two, and the loops over them with their mask and
// with numbers of their rows.
#pragma once

#include <memory>
#include <numeric>
#include <vector>

#include "parallel.h"
#include "period.h"

namespace drsn::cpu {

// Elements [begin, begin + n) of each of `count` lines from `line` on. More than one line comes whole. The thread reads
// `rest` elements after them.
struct Range {
  int64_t line, count, begin, n;
  int64_t rest = 0;
};

// How x is walked. A line is contiguous in memory and has one segment of the mask: a row, of width 1, or, in
// channels_last, a sample, whose elements belong to `width` channels in turn. A group is the lines that are summed
// before any of them is written: one, or the rows of a sample where per_sample.
struct Lines {
  int64_t count, length, width;
  int64_t period;  // of the numbers along a line
  int64_t per_group;
  int64_t sums;           // sums of a line: its width, or 5 in batch_norm_shrink's backward
  int64_t piece;          // elements of a partial sum: whole bytes of the mask, and whole positions of the channels
  int64_t cached = 4096;  // elements of the groups that a thread takes through both passes at a time

  Lines(const Rows& rows, bool per_sample)
      : count(rows.lines()),
        length(rows.line_length()),
        width(rows.channels_last ? rows.channels : 1),
        period(period_of(width)),
        per_group(per_sample && !rows.channels_last ? rows.channels : 1),
        sums(width),
        piece(std::max<int64_t>(8, kGrain / width / 8 * 8) * width) {}

  int64_t groups() const { return count / per_group; }
  int64_t rows_per_group() const { return per_group * width; }
  int64_t pieces() const { return ceil_div(length, piece); }
  int64_t offset(const Range& at) const { return at.line * length + at.begin; }

  // Whether each line is a row that is summed and written by itself, in one piece.
  bool are_groups() const { return width == 1 && per_group == 1 && pieces() == 1; }

  // How the lines of a range from `line` on are written to `out`, which may be `in`; for_each_call takes them one by
  // one or all together.
  template <class T>
  Store store(const Range& at, int64_t line, const T* in, const T* out) const {
    const int64_t after = width == 1 ? 0 : at.line + at.count - line - 1;
    return {streams(out, in, count * length), at.rest + after * length};
  }
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
    const int64_t step = std::clamp<int64_t>(lines.cached / group_size, 1, lines.groups());
    return for_each_part(lines.groups(), group_size, [&](int64_t first, int64_t end) {
      std::vector<double> sums(step * lines.per_group * width), of_piece(pieces > 1 ? width : 0);
      for (int64_t group = first; group < end; group += step) {
        const int64_t groups = std::min(step, end - group);
        const Range whole{group * lines.per_group, groups * lines.per_group, 0, lines.length,
                          (end - group - groups) * group_size};
        std::fill(sums.begin(), sums.end(), 0);
        if (pieces == 1) sum(whole, sums.data());
        for (int64_t i = 0; i < whole.count && pieces > 1; ++i) {
          for (int64_t begin = 0; begin < lines.length; begin += lines.piece) {
            std::fill(of_piece.begin(), of_piece.end(), 0);
            sum(Range{whole.line + i, 1, begin, std::min(lines.piece, lines.length - begin)}, of_piece.data());
            for (int64_t j = 0; j < width; ++j) sums[i * width + j] += of_piece[j];
          }
        }
        finish(group, groups, sums.data());
        apply(whole);
      }
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

// The numbers of the rows of lines, as the loops take them: a row's own, or the channels' numbers in turn.
template <class A>
class LineNumbers {
 public:
  LineNumbers(const Lines& lines, const A* values)
      : lines_(lines), values_(values), repeated_(lines.width > 1 ? lines.period + kPastPeriod : 0) {}

  // Those from a line on, until the next call.
  const A* from(int64_t line) {
    const A* own = values_ + line * lines_.width;
    if (lines_.width == 1) return own;
    repeat(own, lines_.period, lines_.width, repeated_.data());
    return repeated_.data();
  }

 private:
  const Lines& lines_;
  const A* values_;
  std::vector<A> repeated_;
};

// Calls run(line, count) for the lines that a loop takes at once: rows all together, else one.
template <class Run>
void for_each_call(const Lines& lines, const Range& at, const Run& run) {
  const int64_t step = lines.width == 1 ? at.count : 1;
  for (int64_t line = at.line; line < at.line + at.count; line += step) run(line, step);
}

// Adds to the sums of the rows of lines; add(line, count, sums) adds to those of its lines, over a period.
template <class Add>
void add_line_sums(const Lines& lines, const Range& at, double* sums, const Add& add) {
  if (lines.width == 1) return add(at.line, at.count, sums);
  std::vector<double> columns(lines.period);
  for (int64_t l = 0; l < at.count; ++l) {
    std::fill(columns.begin(), columns.end(), 0);
    add(at.line + l, 1, columns.data());
    fold_columns(columns.data(), lines.period, lines.width);
    for (int64_t c = 0; c < lines.width; ++c) sums[l * lines.width + c] += columns[c];
  }
}

// A number of each row, not set.
template <class A>
std::unique_ptr<A[]> row_buffer(const Rows& rows) {
  return std::unique_ptr<A[]>(new A[rows.samples * rows.channels]);
}

// Copies those of `count` rows from `row` on out of a matrix (N or 1, C or 1).
template <class A>
void copy_rows(const RowValues& values, const Rows& rows, int64_t row, int64_t count, A* out) {
  for (int64_t c = row % rows.channels, n = row / rows.channels; count > 0; c = 0, ++n) {
    const A* of_sample = as<A>(values.data) + n * values.sample_stride;
    const int64_t end = std::min(rows.channels, c + count);
    count -= end - c;
    for (; c < end; ++c) *out++ = of_sample[c * values.channel_stride];
  }
}

// The mean of each row, or of each sample, of `count` groups from `group` on, from the sums of their lines.
template <class A>
void set_means(const Rows& rows, const Lines& lines, bool per_sample, int64_t group, int64_t count, const double* sums,
               A* mean) {
  const int64_t n = lines.rows_per_group();
  for (int64_t r = 0; r < count * n && !per_sample; ++r) mean[group * n + r] = A(sums[r] / double(rows.length));
  for (int64_t u = 0; u < count && per_sample; ++u) {
    const double all = std::accumulate(sums + u * n, sums + (u + 1) * n, 0.0);
    mean[group + u] = A(all / double(rows.channels * rows.length));
  }
}

// Adds |x| to the sums of the rows.
template <class T>
void add_abs_sums(const Lines& lines, const Range& at, const T* x, double* sums) {
  add_line_sums(lines, at, sums, [&](int64_t line, int64_t count, double* to) {
    loops<T>().abs_sums(x + line * lines.length + at.begin, lines.period, count, at.n, to);
  });
}

// The mask of x: a segment per line.
class Segments {
 public:
  Segments(const uint8_t* mask, const Lines& lines, int planes)
      : mask_(const_cast<uint8_t*>(mask)), plane_bytes_(mask_bytes(lines.length)), planes_(planes) {}

  bool exist() const { return mask_ != nullptr; }
  Planes write(int64_t line, int64_t begin) const {
    if (!mask_) return {};
    return {plane(line, kNegative) + begin / 8, plane(line, kNonzero) + begin / 8,
            planes_ > kActive ? plane(line, kActive) + begin / 8 : nullptr, planes_ * plane_bytes_};
  }
  ConstPlanes read(int64_t line, int64_t begin) const {
    return {plane(line, kNegative), plane(line, kNonzero), planes_ > kActive ? plane(line, kActive) : nullptr, begin,
            planes_ * plane_bytes_};
  }

 private:
  uint8_t* plane(int64_t line, int index) const { return mask_ + (line * planes_ + index) * plane_bytes_; }

  uint8_t* mask_;  // or null
  int64_t plane_bytes_;
  int planes_;
};

// Adds active * sign * g to the sums of the rows.
template <class T>
void add_active_sums(const Lines& lines, const Range& at, const T* g, const Segments& mask, double* sums) {
  add_line_sums(lines, at, sums, [&](int64_t line, int64_t count, double* to) {
    loops<T>().active_sums(g + line * lines.length + at.begin, mask.read(line, at.begin), lines.period, count, at.n,
                           to);
  });
}

// y = soft_threshold(x, tau) + residual and its mask, with one tau per row.
template <class T>
void shrink_lines(const Lines& lines, const Range& at, const T* x, const accumulator_t<T>* tau, const T* residual, T* y,
                  const Segments& mask) {
  LineNumbers<accumulator_t<T>> numbers(lines, tau);
  for_each_call(lines, at, [&](int64_t line, int64_t count) {
    const int64_t offset = line * lines.length + at.begin;
    loops<T>().shrink_lines(x + offset, numbers.from(line), lines.period, residual ? residual + offset : nullptr,
                            y + offset, mask.write(line, at.begin), count, at.n, lines.store(at, line, x, y));
  });
}

// dx = active * g + sign * share, with one share per row; without g sign * share alone.
template <class T>
void combine_lines(const Lines& lines, const Range& at, const T* g, const Segments& mask, const accumulator_t<T>* share,
                   T* dx) {
  LineNumbers<accumulator_t<T>> numbers(lines, share);
  for_each_call(lines, at, [&](int64_t line, int64_t count) {
    const int64_t offset = line * lines.length + at.begin;
    loops<T>().combine_lines(g ? g + offset : nullptr, mask.read(line, at.begin), numbers.from(line), lines.period,
                             dx + offset, count, at.n, lines.store(at, line, g, dx));
  });
}

}  // namespace drsn::cpu
