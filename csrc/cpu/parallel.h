// How the CPU kernels share work: in fixed pieces through PyTorch's own thread pool, so that no sum depends on the
// number of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "loops.h"
#include "shrinkage_math.h"
#include "torch_api.h"

namespace drsn::cpu {

constexpr int64_t kGrain = 32768;  // elements below which a second thread costs more than it brings
constexpr int64_t kBuffer = 1024;  // elements of a buffer that stays in the first-level cache
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

// Calls run(task) for every task; `elements` is the size of one.
template <class Run>
void for_each_task(int64_t tasks, int64_t elements, const Run& run) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(elements, 1));
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) run(task);
  });
}

// What two passes over x walk along. A line is contiguous in memory and has one segment of the mask: a row, of width 1,
// or, in channels_last, a sample, whose elements belong to `width` channels in turn. A unit is what shares a statistic.
struct Lines {
  int64_t count, length, width;
  int64_t per_unit;
  int64_t sums;              // numbers that a line adds up
  int64_t cached = kCached;  // elements of whole units that a thread takes through both passes
  int64_t piece;             // elements summed at a time: a multiple of 8, whole bytes of mask, and of the width

  Lines(const Rows& rows, bool per_sample)
      : count(rows.segments()),
        length(rows.segment_length()),
        width(rows.channels_last ? rows.channels : 1),
        per_unit(per_sample && !rows.channels_last ? std::max<int64_t>(rows.channels, 1) : 1),
        sums(width),
        piece(std::max<int64_t>(8, kGrain / std::max<int64_t>(width, 1) / 8 * 8) * std::max<int64_t>(width, 1)) {}

  int64_t units() const { return count / per_unit; }
  int64_t pieces() const { return std::max<int64_t>(1, (length + piece - 1) / piece); }
};

// Calls run(line, count, begin, n) until every line is done: elements [begin, begin + n) of `count` lines from `line`
// on. More than one line comes whole.
template <class Run>
void for_each_stretch(const Lines& lines, const Run& run) {
  const int64_t pieces = lines.pieces();
  if (pieces == 1) {
    const int64_t block = std::max<int64_t>(1, kCached / std::max<int64_t>(lines.length, 1));
    for_each_task((lines.count + block - 1) / block, block * lines.length, [&](int64_t task) {
      const int64_t line = task * block;
      run(line, std::min(block, lines.count - line), 0, lines.length);
    });
    return;
  }
  for_each_task(lines.count * pieces, lines.piece, [&](int64_t task) {
    const int64_t begin = task % pieces * lines.piece;
    run(task / pieces, 1, begin, std::min(lines.piece, lines.length - begin));
  });
}

// sum(line, count, begin, n, sums) adds to sums[count * lines.sums]; finish(unit, count, sums) gets those of `count`
// units' lines one behind the other; apply(line, count, begin, n) comes after. A thread takes some units through all
// three while they are in its cache. Where there are fewer units than threads, or `together` wants one finish for all
// units, every line is summed before the first apply; the same sums are added in the same order.
template <class Sum, class Finish, class Apply>
void two_passes(const Lines& lines, bool together, const Sum& sum, const Finish& finish, const Apply& apply) {
  const int64_t pieces = lines.pieces();
  const int64_t width = lines.sums;
  const int64_t unit_size = lines.per_unit * lines.length;
  const auto add_line = [&](int64_t line, double* sums) {
    thread_local std::vector<double> part;
    for (int64_t begin = 0; begin < lines.length; begin += lines.piece) {
      part.assign(width, 0);
      sum(line, 1, begin, std::min(lines.piece, lines.length - begin), part.data());
      for (int64_t j = 0; j < width; ++j) sums[j] += part[j];
    }
  };
  if (!together && (lines.units() >= torch::stable::get_num_threads() || unit_size <= kGrain)) {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t fair = std::max<int64_t>((lines.units() + threads - 1) / threads, 1);
    const int64_t block = std::clamp<int64_t>(lines.cached / std::max<int64_t>(unit_size, 1), 1, fair);
    for_each_task((lines.units() + block - 1) / block, block * unit_size, [&](int64_t task) {
      const int64_t unit = task * block, units = std::min(block, lines.units() - unit);
      const int64_t line = unit * lines.per_unit, count = units * lines.per_unit;
      thread_local std::vector<double> sums;
      sums.assign(count * width, 0);
      if (pieces == 1) {
        sum(line, count, 0, lines.length, sums.data());
      } else {
        for (int64_t i = 0; i < count; ++i) add_line(line + i, &sums[i * width]);
      }
      finish(unit, units, sums.data());
      if (pieces == 1) return apply(line, count, 0, lines.length);
      for (int64_t i = 0; i < count; ++i) apply(line + i, 1, 0, lines.length);
    });
    return;
  }
  std::vector<double> parts(lines.count * pieces * width);
  for_each_stretch(lines, [&](int64_t line, int64_t count, int64_t begin, int64_t n) {
    sum(line, count, begin, n, &parts[(line * pieces + begin / lines.piece) * width]);
  });
  for (int64_t line = 0; line < lines.count && pieces > 1; ++line) {
    double* sums = &parts[line * width];
    const double* part = &parts[line * pieces * width];
    for (int64_t j = 0; j < width; ++j) {
      double all = 0;
      for (int64_t i = 0; i < pieces; ++i) all += part[i * width + j];
      sums[j] = all;
    }
  }
  finish(0, lines.units(), parts.data());
  for_each_stretch(lines, apply);
}

// Adds up numbers that belong to `width` columns in turn: add(i, n, columns) adds those of n elements from i on to
// columns[0, n), with i and n multiples of the width. Columns repeat up to a buffer's length, which keeps narrow rows
// of columns as fast as wide ones.
template <class A, class Add>
void sum_columns(int64_t n, int64_t width, double* sums, const Add& add) {
  const int64_t span = width < kBuffer ? kBuffer / width * width : width;
  constexpr int64_t kFlush = 64;  // additions in A before they go on in double
  thread_local std::vector<A> columns;
  columns.resize(span);
  for (int64_t begin = 0; begin < n; begin += span * kFlush) {
    std::fill(columns.begin(), columns.end(), A(0));
    const int64_t end = std::min(n, begin + span * kFlush);
    for (int64_t i = begin; i < end; i += span) add(i, std::min(span, end - i), columns.data());
    for (int64_t first = 0; first < span; first += width) {
      for (int64_t j = 0; j < width; ++j) sums[j] += columns[first + j];
    }
  }
}

// Adds |x| of a stretch of `count` lines to the sums of their columns.
template <class T>
void add_magnitudes(const T* x, int64_t count, int64_t n, int64_t width, double* sums) {
  const auto& loop = loops<T>();
  if (width == 1) return loop.abs_sums(x, {}, count, n, sums);
  for (int64_t line = 0; line < count; ++line) {
    const T* from = x + line * n;
    sum_columns<accumulator_t<T>>(n, width, sums + line * width, [&](int64_t i, int64_t span, auto* columns) {
      loop.abs_add(from + i, columns, span);
    });
  }
}

// Adds active * sign * g of a stretch of `count` lines, whose mask begins at mask.offset, to the sums of their columns.
template <class T>
void add_signed(const T* g, Bits mask, int64_t count, int64_t n, int64_t width, double* sums) {
  const auto& loop = loops<T>();
  if (width == 1) return loop.signed_sums(g, mask, count, n, sums);
  for (int64_t line = 0; line < count; ++line) {
    const T* from = g + line * n;
    sum_columns<accumulator_t<T>>(n, width, sums + line * width, [&](int64_t i, int64_t span, auto* columns) {
      Bits bits = row_of(mask, line);
      bits.offset += i;
      loop.signed_add(from + i, bits, columns, span);
    });
  }
}

// The matrix (N or 1, C or 1) as one number for each row; nothing where there is no matrix.
template <class A>
std::vector<A> each_row(const RowValues& values, const Rows& rows) {
  if (!values.data) return {};
  std::vector<A> out;
  out.reserve(rows.samples * rows.channels);
  for (int64_t n = 0; n < rows.samples; ++n) {
    const A* row = as<A>(values.data) + n * values.sample_stride;
    for (int64_t c = 0; c < rows.channels; ++c) out.push_back(row[c * values.channel_stride]);
  }
  return out;
}

// One number a row of `values` (N * C) laid along a line: the row's own, or the channels' numbers in turn.
template <class A>
class AlongLine {
 public:
  AlongLine(const A* values, int64_t line, int64_t width)
      : data_(values ? values + line * width : nullptr), width_(width) {
    if (!values || width == 1) return;
    turn_.assign(data_, data_ + width);
    turn_.resize(width + kBuffer);
    for (int64_t j = width; j < width + kBuffer; ++j) turn_[j] = turn_[j - width];
    data_ = turn_.data();
  }

  // From element i on; varying numbers last for kBuffer elements.
  Values<A> at(int64_t i) const {
    if (!data_) return {};
    return width_ == 1 ? Values<A>{data_, false} : Values<A>{data_ + i % width_, true};
  }

  // Calls run(i, n) for the stretches that at() serves.
  template <class Run>
  void for_each(int64_t begin, int64_t n, const Run& run) const {
    const int64_t step = width_ == 1 ? std::max<int64_t>(n, 1) : kBuffer;
    for (int64_t i = begin; i < begin + n; i += step) run(i, std::min(step, begin + n - i));
  }

 private:
  std::vector<A> turn_;
  const A* data_;
  int64_t width_;
};

// Where the planes of a line's mask are, from element `begin` on.
struct LineMask {
  uint8_t* data;
  int64_t bytes;  // of a plane
  int planes;

  LineMask(const uint8_t* mask, const Lines& lines, int planes)
      : data(const_cast<uint8_t*>(mask)), bytes(mask_bytes(lines.length)), planes(planes) {}

  uint8_t* plane(int64_t line, int index) const { return data + (line * planes + index) * bytes; }
  Planes write(int64_t line, int64_t begin) const {
    if (!data) return {};
    return {plane(line, kNegative) + begin / 8, plane(line, kNonzero) + begin / 8,
            planes > kActive ? plane(line, kActive) + begin / 8 : nullptr, planes * bytes};
  }
  Bits read(int64_t line, int64_t begin) const {
    return {plane(line, kNegative), plane(line, kNonzero), planes > kActive ? plane(line, kActive) : nullptr, begin,
            planes * bytes};
  }
};

// y = soft_threshold(x, tau) + residual and its mask, for a stretch of lines, with one tau a row.
template <class T>
void shrink_lines(const Lines& lines, int64_t line, int64_t count, int64_t begin, int64_t n, const T* x,
                  const accumulator_t<T>* tau, const T* residual, T* y, const LineMask& mask) {
  const auto& loop = loops<T>();
  const int64_t offset = line * lines.length + begin;
  if (lines.width == 1) {
    return loop.shrink_rows(x + offset, {}, tau + line, residual ? residual + offset : nullptr, y + offset,
                            mask.write(line, begin), count, n);
  }
  for (int64_t end = line + count; line < end; ++line) {
    const int64_t first = line * lines.length;
    const AlongLine<accumulator_t<T>> along(tau, line, lines.width);
    along.for_each(begin, n, [&](int64_t i, int64_t span) {
      loop.shrink(x + first + i, along.at(i), residual ? residual + first + i : nullptr, y + first + i,
                  mask.write(line, i), span);
    });
  }
}

// dx = active * g + sign * v for a stretch of lines, with one v a row.
template <class T>
void spread_lines(const Lines& lines, int64_t line, int64_t count, int64_t begin, int64_t n, const T* g,
                  const LineMask& mask, const accumulator_t<T>* v, T* dx) {
  const auto& loop = loops<T>();
  const int64_t offset = line * lines.length + begin;
  if (lines.width == 1) {
    return loop.spread_rows(g + offset, mask.read(line, begin), v + line, dx + offset, count, n);
  }
  for (int64_t end = line + count; line < end; ++line) {
    const int64_t first = line * lines.length;
    const AlongLine<accumulator_t<T>> along(v, line, lines.width);
    along.for_each(begin, n, [&](int64_t i, int64_t span) {
      loop.combine(g + first + i, mask.read(line, i), along.at(i), dx + first + i, span);
    });
  }
}

}  // namespace drsn::cpu
