// The loops of a convolution of few channels (Taps of loops.h). Part of loops_impl.h.
//
// Both walk units of 16 numbers, of one vector or two. An element of a result is one chain of multiply-adds, and a
// partial sum takes every 16th number, so that AVX2 and AVX-512 give the same bits.

constexpr int kUnit = 16;
constexpr int kVectors = kUnit / kLanes<float>;  // of a unit

// For each number of vector v of a unit the channel i of its position, from the channels of the vector's positions.
// kWhole: a group is a vector or more, and a vector has one position.
template <bool kWhole>
DRSN_INLINE vector_t<float> channel_of(const Taps& taps, const float* unit, int v, int64_t i) {
  constexpr int kStep = kLanes<float>;
  if constexpr (kWhole) return repeat(unit + v * kStep / taps.group * taps.group + i);
  return permute(load(unit + v * kStep, kStep), taps.places + i * kUnit);
}

template <bool kWhole, int kUnits>
DRSN_INLINE void convolve_units(const Taps& taps, const float* bias, float* out, int64_t at, int64_t count) {
  using V = vector_t<float>;
  constexpr int kStep = kLanes<float>;
  V sums[kUnits][kVectors];
  for (int v = 0; v < kVectors; ++v) {
    for (int u = 0; u < kUnits; ++u) sums[u][v] = load(bias + v * kStep, kStep);
  }
  const float* weight = taps.weight;
  for (int64_t t = 0; t < taps.count; ++t) {
    const float* in = taps.in[t] + at;
    for (int64_t i = 0; i < taps.channels; ++i, weight += kUnit) {
      for (int v = 0; v < kVectors; ++v) {
        const V w = load(weight + v * kStep, kStep);
        for (int u = 0; u < kUnits; ++u)
          sums[u][v] = multiply_add(channel_of<kWhole>(taps, in + u * kUnit, v, i), w, sums[u][v]);
      }
    }
  }
  for (int u = 0; u < kUnits; ++u) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t from = u * kUnit + v * kStep;
      const V sum = taps.relu ? positive_part<float>(sums[u][v]) : sums[u][v];
      if (from < count) store(out + at + from, sum, smaller(kStep, count - from));
    }
  }
}

template <bool kWhole>
void convolve_groups(const Taps& taps, const float* bias, float* out, int64_t n) {
  constexpr int kUnits = 8 / kVectors;
  int64_t at = 0;
  for (; at + kUnits * kUnit <= n; at += kUnits * kUnit)
    convolve_units<kWhole, kUnits>(taps, bias, out, at, kUnits * kUnit);
  for (; at < n; at += kUnit) convolve_units<kWhole, 1>(taps, bias, out, at, n - at);
}

// Vector v of the sums of channels [i, i + kChannels) of every tap, from units [begin, end).
template <bool kWhole, int kChannels>
DRSN_INLINE void correlate_channels(const Taps& taps, const float* g, int64_t begin, int64_t end, int v, int64_t i,
                                    float* sums) {
  using V = vector_t<float>;
  constexpr int kStep = kLanes<float>, kTaps = 3;
  V products[kTaps][kChannels] = {};
  for (int64_t at = begin; at < end; at += kUnit) {
    const V with = load(g + at + v * kStep, kStep);
#pragma GCC unroll 4
    for (int t = 0; t < kTaps; ++t) {
#pragma GCC unroll 4
      for (int c = 0; c < kChannels; ++c)
        products[t][c] = multiply_add(channel_of<kWhole>(taps, taps.in[t] + at, v, i + c), with, products[t][c]);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTaps; ++t) {
#pragma GCC unroll 4
    for (int c = 0; c < kChannels; ++c)
      store(sums + (t * taps.group + i + c) * kUnit + v * kStep, products[t][c], kStep);
  }
}

// A vector of the sum of units [begin, end) of g: four sums, since one would wait for itself.
DRSN_INLINE vector_t<float> add_units(const float* g, int64_t begin, int64_t end) {
  constexpr int kSums = 4;
  vector_t<float> sums[kSums] = {};
  int64_t at = begin;
  for (; at + kSums * kUnit <= end; at += kSums * kUnit) {
    for (int s = 0; s < kSums; ++s) sums[s] += load(g + at + s * kUnit, kLanes<float>);
  }
  for (; at < end; at += kUnit) sums[0] += load(g + at, kLanes<float>);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <bool kWhole>
void correlate_groups(const Taps& taps, const float* g, int64_t n, double* sums) {
  constexpr int kChannels = 4;  // of each tap, whose sums stay in registers
  constexpr int kMost = 3 * kUnit + 1, kStep = kLanes<float>;
  const int64_t count = 3 * taps.group + 1;
  float part[kMost * kUnit] = {};
  for (int64_t begin = 0; begin < n; begin += kAdditions * kUnit) {
    const int64_t end = smaller(n, begin + kAdditions * kUnit);
    for (int v = 0; v < kVectors; ++v) {
      for (int64_t i = 0; i < taps.channels; i += kChannels)
        correlate_channels<kWhole, kChannels>(taps, g, begin, end, v, i, part);
      store(part + (count - 1) * kUnit + v * kStep, add_units(g + v * kStep, begin, end), kStep);
    }
    for (int64_t j = 0; j < count * kUnit; ++j) sums[j] += double(part[j]);
  }
}
