// The statistics of channels and the gradients that end in them, for BatchNorm before a ReLU and before a shrinkage.
#include "batch_norm.h"

namespace drsn::cpu {
namespace {

// The mean and the sum of the squared distances from it, of each channel of parts of x.
class Moments {
 public:
  Moments(int64_t parts, int64_t channels) : channels_(channels), mean_(parts * channels), squares_(parts * channels) {}

  double* mean(int64_t part) { return &mean_[part * channels_]; }
  double* squares(int64_t part) { return &squares_[part * channels_]; }

  // Merges the parts in their order; count(part) is the number of elements of a channel in a part.
  template <class Count, class Take>
  void merge(int64_t elements, const Count& count, const Take& take) {
    std::vector<double> center(channels_), all(channels_);
    const auto parts = int64_t(mean_.size()) / channels_;
    for (int64_t part = 0; part < parts; ++part) {
      const double n = double(count(part));
      for (int64_t c = 0; c < channels_; ++c) center[c] += mean(part)[c] * n;
    }
    for (double& c : center) c /= double(elements);
    for (int64_t part = 0; part < parts; ++part) {
      const double n = double(count(part));
      for (int64_t c = 0; c < channels_; ++c) {
        const double d = mean(part)[c] - center[c];
        all[c] += squares(part)[c] + d * d * n;
      }
    }
    for (int64_t c = 0; c < channels_; ++c) take(c, center[c], all[c] / double(elements));
  }

 private:
  int64_t channels_;
  std::vector<double> mean_, squares_;
};

// The moments of `positions` positions in channels_last. The sums are about the mean of a first part of them, no less
// than a 32nd: were that far off the others, the variance would be as large as what rounding takes from it is small.
template <class T>
void moments_of_positions(const T* x, int64_t channels, int64_t positions, double* mean, double* squares) {
  using A = accumulator_t<T>;
  const int64_t period = period_of(channels);
  const int64_t block = std::max({std::min(positions, 1024 / channels), positions / 32, int64_t(1)});
  std::vector<double> sums(2 * period);
  std::vector<A> center(period);
  loops<T>().centered_sums(x, center.data(), period, block * channels, sums.data());
  fold_columns(sums.data(), period, channels);
  for (int64_t i = 0; i < period; ++i) center[i] = A(sums[i % channels] / double(block));
  std::fill(sums.begin(), sums.end(), 0);
  loops<T>().centered_sums(x, center.data(), period, positions * channels, sums.data());
  fold_columns(sums.data(), period, channels);
  fold_columns(&sums[period], period, channels);
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] = double(center[c]) + sums[c] / double(positions);
    squares[c] = sums[period + c] - sums[c] * sums[c] / double(positions);
  }
}

}  // namespace

template <class T>
void set_statistics(const Norm& norm, const Rows& rows, const T* x, accumulator_t<T>* state) {
  using A = accumulator_t<T>;
  const int64_t channels = rows.channels, positions = rows.samples * rows.length;
  A* mean = state;
  A* rstd = state + channels;
  if (norm.kind == NormKind::kRunning) return running_statistics(norm, channels, mean, rstd);
  const BatchStatistics<A> statistics(norm, positions);
  const auto take = [&](int64_t c, double center, double variance) {
    statistics.set(c, center, variance, mean + c, rstd + c);
  };
  if (!rows.channels_last) {
    Moments moments(rows.samples, channels);
    for_each_range(rows.lines(), std::max<int64_t>(1, kCached / rows.length), rows.length, [&](int64_t row, int64_t n) {
      loops<T>().moments(x + row * rows.length, n, rows.length, moments.mean(0) + row, moments.squares(0) + row);
    });
    return moments.merge(positions, [&](int64_t) { return rows.length; }, take);
  }
  const int64_t step = std::max<int64_t>(32, kGrain / channels);
  const auto count = [&](int64_t part) { return std::min(step, positions - part * step); };
  Moments moments(ceil_div(positions, step), channels);
  for_each_task(ceil_div(positions, step), step * channels, [&](int64_t part) {
    moments_of_positions(x + part * step * channels, channels, count(part), moments.mean(part), moments.squares(part));
  });
  moments.merge(positions, count, take);
}

template <class A>
ChannelNorm<A>::ChannelNorm(const Norm& norm, const Rows& rows, const A* state)
    : rstd(state + rows.channels, state + 2 * rows.channels), rows_(rows) {
  std::vector<A> factor = rstd, shift(rows.channels);
  for (int64_t c = 0; c < rows.channels; ++c) {
    if (norm.weight) factor[c] *= as<A>(norm.weight)[c];
    if (norm.bias) shift[c] = as<A>(norm.bias)[c];
  }
  center = along_lines(std::vector<A>(state, state + rows.channels), rows);
  scale = along_lines(factor, rows);
  bias = along_lines(shift, rows);
  sums.resize(rows.channels);
  centered_sums.resize(rows.channels);
}

template <class A>
void ChannelNorm<A>::finish(bool over_batch, void* dweight, void* dbias) {
  const double elements = double(rows_.samples * rows_.length);
  at_center.resize(over_batch ? scale.size() : 0);
  slope.resize(at_center.size());
  for (size_t i = 0; i < scale.size(); ++i) {
    const size_t c = i % sums.size();
    const double of_weight = centered_sums[c] * rstd[c];
    if (dweight) as<A>(dweight)[c] = A(of_weight);
    if (dbias) as<A>(dbias)[c] = A(sums[c]);
    if (!over_batch) continue;
    at_center[i] = A(-scale[i] * sums[c] / elements);
    slope[i] = A(-scale[i] * of_weight * rstd[c] / elements);
  }
}

template <class T>
void add_relu_sums(const T* g, const T* x, const ChannelNorm<accumulator_t<T>>& norm, const Walk& walk,
                   int64_t channels, double* sums) {
  thread_local std::vector<double> columns;
  columns.assign(2 * walk.period, 0);
  loops<T>().relu_sums(g, x, norm.numbers(), walk, columns.data());
  for (int64_t i = 0; i < 2; ++i) {
    fold_columns(&columns[i * walk.period], walk.period, channels);
    for (int64_t c = 0; c < channels; ++c) sums[i * channels + c] += columns[i * walk.period + c];
  }
}

Tiles::Tiles(const Rows& rows, const Spatial& spatial, bool in_runs, int64_t elements)
    : rows_(rows), in_runs_(in_runs), padded_{0} {
  const int64_t width = rows.channels_last ? rows.channels : 1;
  int64_t padded[3];
  for (int i = 0; i < 3; ++i) padded[i] = spatial.before[i] + spatial.size[i] + spatial.after[i];
  span_ = in_runs ? spatial.size[2] * width : width;
  spans_ = rows.line_length() / span_;
  padded_line_ = padded[0] * padded[1] * padded[2] * width;
  piece_ = rows.line_length() > elements ? std::max<int64_t>(1, elements / span_) : spans_;
  pieces_ = ceil_div(spans_, piece_);
  lines_per_tile_ = std::max<int64_t>(1, elements / rows.line_length());
  count_ = pieces_ > 1 ? rows.lines() * pieces_ : ceil_div(rows.lines(), lines_per_tile_);
  elements_ = std::min(rows.lines(), lines_per_tile_) * std::min(piece_, spans_) * span_;
  if (!in_runs) return;
  padded_.clear();
  for (int64_t line = 0; line < (rows.channels_last ? lines_per_tile_ : 1); ++line) {
    for (int64_t run = 0; run < spans_; ++run) {
      const int64_t outer = spatial.before[0] + run / spatial.size[1],
                    inner = spatial.before[1] + run % spatial.size[1];
      padded_.push_back(line * padded_line_ + ((outer * padded[1] + inner) * padded[2] + spatial.before[2]) * width);
    }
  }
}

Tile Tiles::operator[](int64_t index) const {
  if (pieces_ == 1) {
    const int64_t line = index * lines_per_tile_;
    return {line, std::min(lines_per_tile_, rows_.lines() - line), 0, spans_};
  }
  const int64_t begin = index % pieces_ * piece_;
  return {index / pieces_, 1, begin, std::min(piece_, spans_ - begin)};
}

Walk Tiles::walk(const Tile& tile) const {
  const int64_t runs = in_runs_ ? tile.spans : 1, n = in_runs_ ? span_ : tile.spans * span_;
  const int64_t* padded = &padded_[in_runs_ ? tile.begin : 0];
  if (!rows_.channels_last)
    return {tile.lines, runs, n, padded, padded_line_, 1, tile.line % rows_.channels, rows_.channels};
  const int64_t period = period_of(rows_.channels);
  if (in_runs_) return {1, tile.lines * runs, n, padded, 0, period, 0, 1};
  return {1, 1, tile.lines * n, padded, 0, period, 0, 1};
}

#define DRSN_INSTANTIATE(T)                                                            \
  template void set_statistics(const Norm&, const Rows&, const T*, accumulator_t<T>*); \
  template void add_relu_sums(const T*, const T*, const ChannelNorm<accumulator_t<T>>&, const Walk&, int64_t, double*);
DRSN_INSTANTIATE(float)
DRSN_INSTANTIATE(double)
DRSN_INSTANTIATE(Half)
DRSN_INSTANTIATE(BFloat16)
template struct ChannelNorm<float>;
template struct ChannelNorm<double>;

}  // namespace drsn::cpu
