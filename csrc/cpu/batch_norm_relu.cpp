// y = relu(norm(x)), padded, and the shortcut of a residual unit: x is read for the statistics of its channels and for
// the result; backward with the gradient for two sums of each channel, then for dx.
#include "backend.h"
#include "batch_norm.h"
#include "chunks.h"

namespace drsn::cpu {
namespace {

// x as tiles; a sample's runs lie apart where y is padded or the shortcut has other positions or channels.
template <class P>
bool in_runs(const P& p) {
  return p.stride > 1 || (p.shortcut_channels != 0 && p.shortcut_channels != p.rows.channels);
}

// (N, C) lies in memory as channels_last does: long lines instead of rows of one element.
template <class P>
Rows rows_side_by_side(const P& p) {
  Rows rows = p.rows;
  const Spatial& s = p.spatial;
  if (rows.length == 1 && s.before[2] + s.after[2] == 0) rows.channels_last = true;
  return rows;
}

// Where the shortcut has the elements of x.
class Shortcut {
 public:
  template <class P>
  Shortcut(const P& p, const Rows& rows)
      : stride(p.stride), channels(p.shortcut_channels), first((channels - rows.channels) / 2), rows_(rows) {
    for (int i = 0; i < 3; ++i) {
      size_[i] = p.spatial.size[i];
      kept_[i] = ceil_div(size_[i], stride);
    }
  }

  int64_t plane() const { return kept_[0] * kept_[1] * kept_[2]; }

  // Calls run(x, shortcut) with where both have the first element of a run of the tile that the shortcut keeps.
  template <class Run>
  void for_each_run(const Tile& tile, const Run& run) const {
    const int64_t n = size_[2] * (rows_.channels_last ? rows_.channels : 1);
    for (int64_t line = tile.line; line < tile.line + tile.lines; ++line) {
      const int64_t channel = line % rows_.channels, sample = line / rows_.channels;
      for (int64_t span = tile.begin; span < tile.begin + tile.spans; ++span) {
        const int64_t outer = span / size_[1], inner = span % size_[1];
        if (outer % stride || inner % stride) continue;
        const int64_t row = (outer / stride * kept_[1] + inner / stride) * kept_[2];
        const int64_t at = rows_.channels_last ? (line * plane() + row) * channels + first
                                               : (sample * channels + first + channel) * plane() + row;
        run(((line - tile.line) * tile.spans + span - tile.begin) * n, at);
      }
    }
  }

  // Copies a run of x to the shortcut, or back.
  template <class T>
  void gather(const T* x, T* shortcut) const {
    copy_chunks(x, stride * width(), shortcut, step(), kept_[2], width());
  }
  template <class T>
  void scatter(const T* shortcut, T* x) const {
    copy_chunks(shortcut, step(), x, stride * width(), kept_[2], width());
  }

  // Zeros in the channels without an x.
  template <class T>
  void zero_margins(const Tile& tile, T* shortcut) const {
    const int64_t behind = channels - rows_.channels - first;
    if (first + behind == 0) return;
    if (rows_.channels_last) {
      for_each_run(tile, [&](int64_t, int64_t at) { std::fill_n(shortcut + at - first, kept_[2] * channels, T{}); });
      return;
    }
    for (int64_t line = tile.line; line < tile.line + tile.lines && tile.begin == 0; ++line) {
      T* sample = shortcut + line / rows_.channels * channels * plane();
      if (line % rows_.channels == 0) std::fill_n(sample, first * plane(), T{});
      if (line % rows_.channels == rows_.channels - 1)
        std::fill_n(sample + (channels - behind) * plane(), behind * plane(), T{});
    }
  }

  const int64_t stride, channels, first;  // the channels of x begin at `first`

 private:
  int64_t width() const { return rows_.channels_last ? rows_.channels : 1; }
  int64_t step() const { return rows_.channels_last ? channels : 1; }

  const Rows& rows_;
  int64_t size_[3], kept_[3];
};

template <class T>
void forward(const BatchNormRelu& p) {
  using A = accumulator_t<T>;
  const Rows rows = rows_side_by_side(p);
  const T* x = as<T>(p.x);
  T* to = as<T>(p.shortcut);
  set_statistics(p.norm, rows, x, as<A>(p.state));
  const ChannelNorm<A> norm(p.norm, rows, as<A>(p.state));
  const Affine<A> affine = norm.numbers().affine;
  const Shortcut shortcut(p, rows);
  const Tiles tiles(rows, p.spatial, in_runs(p), kCached);
  for_each_task(tiles.count(), tiles.elements(), [&](int64_t index) {
    const Tile tile = tiles[index];
    const T* tile_x = x + tiles.offset(tile);
    T* y = as<T>(p.y) + tiles.padded_offset(tile);
    loops<T>().batch_norm_relu(tile_x, affine, y, tiles.walk(tile));
    tiles.for_each_gap(tile, [&](int64_t begin, int64_t n) { std::fill_n(y + begin, n, T{}); });
    if (!to) return;
    if (!in_runs(p)) {
      std::copy_n(tile_x, tiles.size(tile), to + tiles.offset(tile));
      return;
    }
    shortcut.zero_margins(tile, to);
    shortcut.for_each_run(tile, [&](int64_t from, int64_t at) { shortcut.gather(tile_x + from, to + at); });
  });
}

// Adds the sums of the channels to norm: a tile's, or a row's piece's, one after another.
template <class T>
void add_sums(const BatchNormReluBackward& p, const Rows& rows, ChannelNorm<accumulator_t<T>>& norm) {
  const int64_t width = rows.channels_last ? rows.channels : 1;
  const Tiles tiles(rows, p.spatial, in_runs(p), std::max(kGrain, 32 * width));
  std::vector<double> sums(2 * width * (rows.channels_last ? tiles.count() : rows.lines() * tiles.pieces()));
  for_each_task(tiles.count(), tiles.elements(), [&](int64_t index) {
    const Tile tile = tiles[index];
    const T *g = as<T>(p.grad) + tiles.padded_offset(tile), *x = as<T>(p.x) + tiles.offset(tile);
    const Walk walk = tiles.walk(tile);
    if (rows.channels_last) return add_relu_sums(g, x, norm, walk, width, &sums[2 * width * index]);
    loops<T>().relu_sums(g, x, norm.numbers(), walk, &sums[2 * (tile.line * tiles.pieces() + tiles.piece(tile))]);
  });
  const double* from = sums.data();
  if (rows.channels_last) {
    for (int64_t tile = 0; tile < tiles.count(); ++tile, from += 2 * width) {
      for (int64_t c = 0; c < width; ++c) norm.sums[c] += from[c], norm.centered_sums[c] += from[width + c];
    }
  } else {
    for (int64_t line = 0; line < rows.lines(); ++line) {
      const int64_t c = line % rows.channels;
      for (int64_t piece = 0; piece < tiles.pieces(); ++piece, from += 2)
        norm.sums[c] += from[0], norm.centered_sums[c] += from[1];
    }
  }
}

template <class T>
void backward(const BatchNormReluBackward& p) {
  const Rows rows = rows_side_by_side(p);
  ChannelNorm<accumulator_t<T>> norm(p.norm, rows, as<accumulator_t<T>>(p.state));
  const bool over_batch = p.norm.kind == NormKind::kBatch;
  if (p.dweight || p.dbias || (p.dx && over_batch)) add_sums<T>(p, rows, norm);
  norm.finish(over_batch, p.dweight, p.dbias);
  if (p.dx) set_dx<T>(p, rows, norm);
}

}  // namespace

template <class T>
void set_dx(const BatchNormReluBackward& p, const Rows& rows, const ChannelNorm<accumulator_t<T>>& norm) {
  const T* from = as<T>(p.grad_shortcut);
  const Shortcut shortcut(p, rows);
  const Tiles tiles(rows, p.spatial, in_runs(p), kCached);
  for_each_task(tiles.count(), tiles.elements(), [&](int64_t index) {
    const Tile tile = tiles[index];
    const int64_t offset = tiles.offset(tile);
    const T* added = from && !in_runs(p) ? from + offset : nullptr;
    if (from && !added) {
      thread_local std::vector<T> spread;
      spread.assign(tiles.size(tile), T{});
      shortcut.for_each_run(tile, [&](int64_t to, int64_t at) { shortcut.scatter(from + at, &spread[to]); });
      added = spread.data();
    }
    loops<T>().relu_combine(as<T>(p.grad) + tiles.padded_offset(tile), as<T>(p.x) + offset, norm.numbers(), added,
                            as<T>(p.dx) + offset, tiles.walk(tile));
  });
}
template void set_dx<float>(const BatchNormReluBackward&, const Rows&, const ChannelNorm<float>&);

void batch_norm_relu(const BatchNormRelu& p) {
  with_type(p.dtype, [&](auto type) { forward<decltype(type)>(p); });
}

void batch_norm_relu_backward(const BatchNormReluBackward& p) {
  with_type(p.dtype, [&](auto type) { backward<decltype(type)>(p); });
}

}  // namespace drsn::cpu
