// Where an element lies: fast division, strided tensors, and the rows of x.
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
  // The values at V neighbouring flat indices from e < end; V > 1 needs an innermost axis of V elements or more.
  template <int V, class acc_t, class Read>
  __device__ __forceinline__ void read(acc_t (&out)[V], int64_t e, int64_t end, Read read_at) const {
    const Place here = locate(e);
    if constexpr (V == 1) {
      out[0] = read_at(here.offset);
    } else {
      const int64_t inner_stride = stride[last];
      const bool wraps = here.left < V && e + here.left < end;
      const int64_t next = wraps ? locate(e + here.left).offset : 0;
      if (inner_stride == 0) {
        const acc_t first = read_at(here.offset);
        const acc_t second = wraps ? read_at(next) : first;
#pragma unroll
        for (int j = 0; j < V; ++j) out[j] = j < here.left ? first : second;
        return;
      }
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const int64_t offset = j < here.left ? here.offset + j * inner_stride : next + (j - here.left) * inner_stride;
        out[j] = e + j < end ? read_at(offset) : acc_t(0);
      }
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

// The elements of x for an elementwise kernel, V per thread. Each line starts at a new byte of the mask and with a new
// thread.
struct LineWalk {
  Divisor lanes;  // threads of a line, 8 / V per byte of the mask
  Divisor channels;
  int64_t length;  // of a line
  int64_t plane_bytes;
  int64_t total;  // threads in all
  bool channels_last;

  LineWalk(const Rows& rows, int V)
      : lanes(mask_bytes(rows.line_length()) * (8 / V)),
        channels(rows.channels),
        length(rows.line_length()),
        plane_bytes(mask_bytes(length)),
        total(rows.lines() * lanes.value),
        channels_last(rows.channels_last) {}

  struct Place {
    int64_t line, position, n, c;
    int64_t element;  // of x
    bool inside;
  };
  __device__ __forceinline__ Place locate(int64_t t, int V) const {
    Place p;
    p.line = lanes.divide(t);
    p.position = (t - p.line * lanes.value) * V;
    p.inside = t < total && p.position < length;
    p.element = fixed(p.line * length + p.position);
    const int64_t quotient = channels.divide(channels_last ? p.position : p.line);
    p.n = channels_last ? p.line : quotient;
    p.c = (channels_last ? p.position : p.line) - quotient * channels.value;
    return p;
  }
  // Moves to the thread's next element. Only in channels_last does it belong to another row.
  __device__ __forceinline__ void advance(Place& p) const {
    if (channels_last && ++p.c == channels.value) p.c = 0;
  }
};

// An elementwise kernel: load(i, place) for each of the thread's vectors, so that all loads are in flight, then
// use(i, place). The blocks walk x from its end, which the kernel before has left in the cache.
template <int V, class Load, class Use>
__device__ __forceinline__ void walk_lines(const LineWalk& walk, Load load, Use use) {
  constexpr int kSlots = kElementwiseSlots<V>;
  const int64_t base = (int64_t(gridDim.x) - 1 - blockIdx.x) * (kThreads * kSlots) + threadIdx.x;
  LineWalk::Place place[kSlots];
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const LineWalk::Place p = walk.locate(base + i * kThreads, V);
    place[i] = p;
    load(i, p);
  }
#pragma unroll
  for (int i = 0; i < kSlots; ++i) use(i, place[i]);
}

// True if LineWalk can move V elements at once.
inline bool vectors_fit(const Rows& rows, int V) {
  return rows.line_length() % V == 0 && (!rows.channels_last || rows.channels >= V);
}

}  // namespace drsn::cuda
