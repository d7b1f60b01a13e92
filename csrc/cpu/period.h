// The period of a line in channels_last (columns.h), for the loops' callers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace drsn::cpu {

// The elements after which the numbers of a line's channels repeat: a multiple of 32 where that is short, so that
// every vector of it is whole; 1 for the line of a single channel, a row.
inline int64_t period_of(int64_t channels) {
  constexpr int64_t kVectors = 32, kLongest = 2048;
  if (channels == 1) return 1;
  const int64_t whole = std::lcm(channels, kVectors);
  return whole <= kLongest ? whole : channels;
}

// One number for each channel, over a period and a vector more.
template <class A>
std::vector<A> repeated(const A* values, int64_t channels) {
  constexpr int64_t kVector = 16;
  std::vector<A> out(period_of(channels) + kVector);
  for (int64_t i = 0, size = int64_t(out.size()); i < size; i += channels)
    std::copy_n(values, std::min(channels, size - i), &out[i]);
  return out;
}

// From sums of the columns of a period to those of the channels, which come first then.
inline void fold_columns(double* sums, int64_t channels) {
  for (int64_t begin = channels; begin < period_of(channels); begin += channels) {
    for (int64_t c = 0; c < channels; ++c) sums[c] += sums[begin + c];
  }
}

}  // namespace drsn::cpu
