// Elementwise kernels over the lines of x: a line has one segment of the mask.
#pragma once

#include "cuda/indexing.cuh"
#include "cuda/launch.cuh"

namespace drsn::cuda {

// A part of x, for one launch of an elementwise kernel.
struct Part {
  Rows rows;                // of the part
  int64_t sample, channel;  // with which it begins
  int64_t element;          // its first, of x
  int64_t line, in_line;    // where that element lies
  int64_t plane_bytes;      // of a whole line

  template <class scalar_t, class pointer_t>
  pointer_t at(pointer_t x) const {  // null where x is
    return x == nullptr ? nullptr : (scalar_t*)(x) + element;
  }
  int64_t in_mask(int planes) const { return line * planes * plane_bytes + in_line / 8; }
  template <class acc_t>
  RowValues values(const RowValues& of_x) const {
    return {static_cast<const acc_t*>(of_x.data) + sample * of_x.sample_stride + channel * of_x.channel_stride,
            of_x.sample_stride, of_x.channel_stride};
  }
};

// f(part) for each part of x: whole samples where one is not too large, else whole rows or positions, else pieces of a
// row. A line counts with the bits that fill its last byte of mask.
template <class F>
cudaError_t for_each_part(const Rows& rows, F f) {
  const int64_t plane_bytes = mask_bytes(rows.line_length()), line = 8 * plane_bytes;
  const int64_t sample = rows.channels_last ? line : rows.channels * line;
  int64_t samples = kMostElements / sample, channels = rows.channels, length = rows.length;
  if (samples == 0 && rows.channels_last) {
    length = std::max<int64_t>(8, kMostElements / rows.channels / 8 * 8);  // a part begins with a byte of mask
    if (length * rows.channels > 2 * kMostElements) return cudaErrorInvalidValue;
  } else if (samples == 0) {
    channels = std::max<int64_t>(1, kMostElements / line);
    length = std::min(length, kMostElements);
  }
  samples = std::max<int64_t>(1, samples);
  for (int64_t n = 0; n < rows.samples; n += samples) {
    for (int64_t c = 0; c < rows.channels; c += channels) {
      for (int64_t p = 0; p < rows.length; p += length) {
        Part part{rows, n, c, 0, 0, 0, plane_bytes};
        part.rows.samples = std::min(samples, rows.samples - n);
        part.rows.channels = std::min(channels, rows.channels - c);
        part.rows.length = std::min(length, rows.length - p);
        part.line = rows.channels_last ? n : n * rows.channels + c;
        part.in_line = rows.channels_last ? p * rows.channels : p;
        part.element = part.line * rows.line_length() + part.in_line;
        DRSN_CUDA_TRY(f(part));
      }
    }
  }
  return cudaSuccess;
}

// The elements of a part for an elementwise kernel, V per thread. Each line starts at a new byte of the mask and with a
// new thread.
struct LineWalk {
  Divisor lanes;  // threads of a line, 8 / V per byte of the mask
  Divisor channels;
  unsigned length;  // of a line
  unsigned total;   // threads in all
  int slots;        // vectors of a thread
  int64_t plane_bytes;
  bool channels_last;

  LineWalk(const Part& part, int V, int most_slots)
      : lanes(mask_bytes(part.rows.line_length()) * (8 / V)),
        channels(part.rows.channels),
        length(unsigned(part.rows.line_length())),
        total(unsigned(part.rows.lines() * lanes.value)),
        slots(elementwise_slots(total, most_slots)),
        plane_bytes(part.plane_bytes),
        channels_last(part.rows.channels_last) {}
  int64_t blocks() const { return ceil_div(total, kThreads * slots); }

  struct Place {
    unsigned line, position, element;  // the element is one of the part
    bool inside;
  };
  __device__ __forceinline__ Place locate(unsigned t, int V) const {
    Place p;
    p.line = lanes.divide(t);
    p.position = (t - p.line * unsigned(lanes.value)) * V;
    p.inside = t < total && p.position < length;
    p.element = p.line * length + p.position;
    return p;
  }

  // Where the segment of the element's line begins in a mask.
  __device__ __forceinline__ int64_t segment(const Place& p, int planes) const {
    return p.line * (planes * plane_bytes);
  }

  struct Row {
    unsigned n, c;
  };
  __device__ __forceinline__ Row row(const Place& p) const {
    const unsigned index = channels_last ? p.position : p.line;
    const unsigned quotient = channels.divide(index);
    return {channels_last ? p.line : quotient, index - quotient * unsigned(channels.value)};
  }
  // The values of the rows of a vector's elements. Only in channels_last are they several.
  template <int V, class acc_t>
  __device__ __forceinline__ void read(acc_t (&out)[V], const RowValues& values, Row row) const {
    const acc_t* data = static_cast<const acc_t*>(values.data);
    const acc_t* mine = data + (row.n * values.sample_stride + row.c * values.channel_stride);
    if (!channels_last || V == 1) {
      const acc_t value = *mine;
#pragma unroll
      for (int j = 0; j < V; ++j) out[j] = value;
    } else if (values.channel_stride == 1 && row.c + V <= unsigned(channels.value)) {
      load_numbers(out, mine);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        out[j] = *mine;
        mine += values.channel_stride;
        if (++row.c == unsigned(channels.value)) mine = data + row.n * values.sample_stride;  // at most once: V <= C
      }
    }
  }
};

// An elementwise kernel: load(i, place) for each of the thread's vectors, so that all loads are in flight, then
// use(i, place). The blocks walk x from its end, which the kernel before has left in the cache.
template <int V, int kSlots, class Load, class Use>
__device__ __forceinline__ void walk_lines(const LineWalk& walk, Load load, Use use) {
  const unsigned base = (gridDim.x - 1 - blockIdx.x) * unsigned(kThreads * walk.slots) + threadIdx.x;
  LineWalk::Place place[kSlots];
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    if (i >= walk.slots) break;
    place[i] = walk.locate(base + i * kThreads, V);
    load(i, place[i]);
  }
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    if (i >= walk.slots) break;
    use(i, place[i]);
  }
}

}  // namespace drsn::cuda
