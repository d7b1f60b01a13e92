// Where an element lies: fast division and strided tensors.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/plan.h"
#include "cuda/vectors.cuh"
#include "params.h"
#include "shrinkage_math.h"

namespace drsn::cuda {

__device__ __forceinline__ bool fits_short(int64_t n) { return uint64_t(n) >> 31 == 0; }

// n / value for 0 <= n < 2^63 as a multiplication: multiplier = floor(2^(63 + l) / value) + 1, l = ceil(log2(value)).
// n < 2^31 takes floor(2^(31 + l) / value) + 1, which is far cheaper.
struct Divisor {
  int64_t value;
  uint64_t multiplier;
  int shift;
  unsigned short_multiplier;  // 0: value is 2^31 or more
  int short_shift;

  Divisor() = default;
  explicit Divisor(int64_t v) : value(v < 1 ? 1 : v), multiplier(0), shift(0), short_multiplier(0), short_shift(31) {
    if (value < int64_t(1) << 31) {
      while (int64_t(1) << (short_shift - 31) < value) ++short_shift;
      short_multiplier = unsigned((uint64_t(1) << short_shift) / uint64_t(value) + 1);
    }
    if (value == 1) return;
    while ((uint64_t(1) << (shift + 1)) < uint64_t(value)) ++shift;
    multiplier = uint64_t((static_cast<unsigned __int128>(1) << (64 + shift)) / uint64_t(value) + 1);
  }
  __device__ __forceinline__ unsigned divide(unsigned n) const {  // n < 2^31
    return unsigned((uint64_t(n) * short_multiplier) >> short_shift);
  }
  __device__ __forceinline__ int64_t divide(int64_t n) const {
    if (fits_short(n)) return divide(unsigned(n));
    return value == 1 ? n : int64_t(__umul64hi(uint64_t(n), multiplier) >> shift);
  }
};

// A Broadcast for the device: the offset in a strided tensor of the element with a flat index.
struct Axes {
  int last;
  Divisor size[kMaxAxes];
  int64_t stride[kMaxAxes];

  Axes() : last(0), size{Divisor(1)}, stride{0} {}
  explicit Axes(const Broadcast& over) : Axes() {
    for (int i = 0; i < over.axes; ++i) add(i, over.size[i], over.stride[i]);
  }
  void add(int i, int64_t axis_size, int64_t axis_stride) {
    last = i;
    size[i] = Divisor(axis_size);
    stride[i] = axis_stride;
  }

  struct Place {
    int64_t offset;
    int64_t left;  // elements to the end of the innermost axis, this one included
  };
  __device__ __forceinline__ Place locate(int64_t e) const {
    return fits_short(e) ? locate_as(unsigned(e)) : locate_as(e);
  }
  // The numbers of `data` at V neighbouring flat indices from e; V > 1 needs an innermost axis of V elements or more.
  template <int V, class acc_t, class number_t>
  __device__ __forceinline__ void read(acc_t (&out)[V], int64_t e, const number_t* data) const {
    const Place here = locate(e);
    const number_t* p = data + here.offset;
    const int64_t apart = stride[last];
    if (V == 1 || (apart == 1 && here.left >= V)) return load_numbers(out, p);
    const number_t* next = here.left < V ? data + locate(e + here.left).offset : p;
    if (apart == 0) {
      const acc_t first = widen(*p), second = widen(*next);
#pragma unroll
      for (int j = 0; j < V; ++j) out[j] = j < here.left ? first : second;
      return;
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (j == here.left) p = next;
      out[j] = widen(*p);
      p += apart;
    }
  }

 private:
  template <class index_t>
  __device__ __forceinline__ Place locate_as(index_t e) const {
    if (last == 0) return {int64_t(e) * stride[0], size[0].value - int64_t(e)};
    index_t outer = size[last].divide(e);
    const index_t position = e - outer * index_t(size[last].value);
    Place place{int64_t(position) * stride[last], size[last].value - int64_t(position)};
#pragma unroll 1
    for (int i = last - 1; i > 0; --i) {
      const index_t next = size[i].divide(outer);
      place.offset += int64_t(outer - next * index_t(size[i].value)) * stride[i];
      outer = next;
    }
    place.offset += int64_t(outer) * stride[0];
    return place;
  }
};

__device__ __forceinline__ int64_t offset_of(const RowValues& values, int64_t n, int64_t c) {
  return n * values.sample_stride + c * values.channel_stride;
}

}  // namespace drsn::cuda
