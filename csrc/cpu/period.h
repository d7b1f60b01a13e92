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

constexpr int64_t kPastPeriod = 16;  // numbers that a loop may read past a period: a vector

// One number for each channel, over a period and what may be read past it.
template <class A>
void repeat(const A* values, int64_t period, int64_t channels, A* out) {
  std::copy_n(values, channels, out);
  for (int64_t i = channels; i < period + kPastPeriod; ++i) out[i] = out[i - channels];
}

// From sums of the columns of a period, a power of two times the channels, to those of the channels, which come first
// then.
inline void fold_columns(double* sums, int64_t period, int64_t channels) {
  for (int64_t half = period / 2; half >= channels; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sums[j] += sums[half + j];
  }
}

}  // namespace drsn::cpu
