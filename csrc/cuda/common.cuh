// What the kernels share: element types, 16-byte access, division by a constant, the mask, sums of a fixed order,
// launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/plan.h"
#include "params.h"
#include "shrinkage_math.h"

namespace drsn::cuda {

// For __launch_bounds__: without a number of blocks ptxas would rather spill than pass 64 registers.
constexpr int kFewBlocks = 1;

// Complex numbers are float2 and double2.
template <class scalar_t>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <>
struct AccumulatorOf<double2> {
  using type = double;
};
template <class scalar_t>
using Accumulator = typename AccumulatorOf<scalar_t>::type;

static __device__ __forceinline__ float widen(__half v) { return __half2float(v); }
static __device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
static __device__ __forceinline__ float widen(float v) { return v; }
static __device__ __forceinline__ double widen(double v) { return v; }

template <class scalar_t>
__device__ __forceinline__ scalar_t narrow(Accumulator<scalar_t> v) {
  if constexpr (std::is_same_v<scalar_t, __half>) {
    return __float2half_rn(v);
  } else if constexpr (std::is_same_v<scalar_t, __nv_bfloat16>) {
    return __float2bfloat16_rn(v);
  } else {
    return v;
  }
}

template <class scalar_t, int V>
struct alignas(sizeof(scalar_t) * V) Vector {
  scalar_t value[V];
};

// A vector as it is loaded and held: words, not elements one by one, which would be taken apart as they arrive.
template <class scalar_t, int V>
struct Packed {
  std::conditional_t<V == 1, scalar_t, uint4> bits;
};

// Its elements. The compiler takes them for new ones, and does not keep them, widened, from one use to the next.
template <class scalar_t, int V>
__device__ __forceinline__ Vector<scalar_t, V> unpack(const Packed<scalar_t, V>& packed) {
  auto bits = packed.bits;
  if constexpr (V > 1 && sizeof(scalar_t) == 2) asm("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
  Vector<scalar_t, V> v;
  memcpy(&v, &bits, sizeof(v));
  return v;
}

// V elements, zeros where not `inside`. One access: p is aligned to the vector.
template <int V, class scalar_t>
__device__ __forceinline__ Packed<scalar_t, V> load_if(bool inside, const scalar_t* p) {
  if constexpr (V == 1) {
    return {inside ? *p : scalar_t{}};
  } else {
    static_assert(sizeof(scalar_t) * V == sizeof(uint4));
    return {inside ? *reinterpret_cast<const uint4*>(p) : uint4{0, 0, 0, 0}};
  }
}

// What a vector that is cut off is put together from: words, so that the whole one stays words as well.
template <class scalar_t>
using Piece = std::conditional_t<sizeof(scalar_t) == 2, uint16_t, uint32_t>;

// The same where the last vector of a tensor may be cut off: `left` elements remain at p.
template <int V, class index_t, class scalar_t>
__device__ __forceinline__ Packed<scalar_t, V> load(index_t left, const scalar_t* p) {
  Packed<scalar_t, V> v = load_if<V>(left >= V, p);
  if constexpr (V > 1) {
    if (left > 0 && left < V) {
      using piece_t = Piece<scalar_t>;
      constexpr int kPieces = 4 / sizeof(piece_t);  // a word
      unsigned words[4] = {};
#pragma unroll 1
      for (int j = 0; j < int(left) * int(sizeof(scalar_t) / sizeof(piece_t)); ++j) {
        const unsigned bits = unsigned(reinterpret_cast<const piece_t*>(p)[j]) << 8 * sizeof(piece_t) * (j % kPieces);
#pragma unroll
        for (int w = 0; w < 4; ++w) words[w] |= j / kPieces == w ? bits : 0;
      }
      v.bits = {words[0], words[1], words[2], words[3]};
    }
  }
  return v;
}

template <int V, class index_t, class scalar_t>
__device__ __forceinline__ void store(index_t left, scalar_t* p, const Vector<scalar_t, V>& v) {
  if (left >= V) {
    if constexpr (V == 1) {
      *p = v.value[0];
    } else {
      uint4 bits;
      memcpy(&bits, &v, sizeof(v));
      *reinterpret_cast<uint4*>(p) = bits;
    }
  } else if constexpr (V > 1) {
    using piece_t = Piece<scalar_t>;
    constexpr int kPieces = 4 / sizeof(piece_t);
    uint4 bits;
    memcpy(&bits, &v, sizeof(v));
#pragma unroll 1
    for (int j = 0; j < int(left) * int(sizeof(scalar_t) / sizeof(piece_t)); ++j) {
      const int w = j / kPieces;
      const unsigned word = w < 2 ? (w == 0 ? bits.x : bits.y) : (w == 2 ? bits.z : bits.w);
      reinterpret_cast<piece_t*>(p)[j] = piece_t(word >> 8 * sizeof(piece_t) * (j % kPieces));
    }
  }
}

// Element i of `data`, which holds accumulators or scalars.
template <class scalar_t>
__device__ __forceinline__ Accumulator<scalar_t> read_as(const void* data, bool accumulators, int64_t i) {
  if (accumulators) return static_cast<const Accumulator<scalar_t>*>(data)[i];
  return widen(static_cast<const scalar_t*>(data)[i]);
}

__device__ __forceinline__ bool fits_short(int64_t n) { return uint64_t(n) >> 31 == 0; }

// n / value for 0 <= n < 2^63 as a multiplication: multiplier = floor(2^(63 + l) / value) + 1, l = ceil(log2(value)).
// For n < 2^31 likewise with floor(2^(31 + l) / value) + 1, which is far cheaper.
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

// A Broadcast for the device: where in a strided tensor the element of a flat index lies.
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

// An offset that the compiler takes for given: it would otherwise put it together anew for every access.
__device__ __forceinline__ int64_t fixed(int64_t offset) {
#if defined(__CUDA_ARCH__)
  asm("" : "+l"(offset));
#endif
  return offset;
}

// A word of mask: bit 8 * plane + j belongs to element j of the thread's V.
__device__ __forceinline__ unsigned spread(unsigned element_bits, int j) {
  return ((element_bits & 1) | (element_bits & 2) << 7 | (element_bits & 4) << 14) << j;
}
__device__ __forceinline__ bool test(unsigned word, int plane, int j) { return word >> (8 * plane + j) & 1; }

// The bytes with position `pos` of the segment of `mask` that starts at byte `segment`. They become a word in a step of
// its own, so that a thread has all its loads in flight before it waits for one.
struct MaskBytes {
  uint8_t plane[kShrinkPlanes];

  // The word at `pos`, a multiple of V.
  template <class index_t>
  __device__ __forceinline__ unsigned word(index_t pos) const {
    unsigned bits = 0;
#pragma unroll
    for (int p = 0; p < kShrinkPlanes; ++p) bits |= unsigned(plane[p]) << (8 * p);
    return bits >> (unsigned(pos) & 7);
  }
};
template <class index_t, class position_t>
__device__ __forceinline__ MaskBytes load_mask(bool inside, const uint8_t* mask, int64_t segment, index_t plane_bytes,
                                               int planes, position_t pos) {
  MaskBytes bytes;
  const uint8_t* byte = mask + fixed(segment + int64_t(std::make_unsigned_t<position_t>(pos) / 8));
#pragma unroll
  for (int p = 0; p < kShrinkPlanes; ++p) {
    bytes.plane[p] = inside && p < planes ? byte[p * plane_bytes] : uint8_t(0);
  }
  return bytes;
}

// Stores the words of a warp. The 8 / V threads of a byte are neighbours, put their bits together, and the first one
// writes. Every thread of the warp takes part; `inside`: the thread's first element exists.
template <int V, class index_t, class position_t>
__device__ __forceinline__ void store_mask(bool inside, uint8_t* mask, index_t plane_bytes, int planes, position_t pos,
                                           unsigned word) {
  constexpr int kSharing = 8 / V;
  const int part = threadIdx.x % kSharing;
  word <<= V * part;
#pragma unroll
  for (int d = 1; d < kSharing; d *= 2) word |= __shfl_xor_sync(~0u, word, d);
  if (inside && part == 0) {
    uint8_t* byte = mask + pos / 8;
#pragma unroll
    for (int p = 0; p < kShrinkPlanes; ++p) {
      if (p < planes) byte[p * plane_bytes] = uint8_t(word >> (8 * p));
    }
  }
}

// The sum over each group of `threads` threads, a power of two, in every one of them. The whole block takes part.
template <class acc_t>
__device__ __forceinline__ acc_t group_sum(acc_t v, int threads) {
  __shared__ acc_t warps[kOnChipThreads / kWarp];
#pragma unroll 1
  for (int d = min(threads, kWarp) / 2; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  if (threads <= kWarp) return v;
  __syncthreads();  // an earlier sum may still be read
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) warps[warp] = v;
  __syncthreads();
  const int count = threads / kWarp;
  const int first = warp / count * count;
  v = warps[first];
#pragma unroll 1
  for (int i = 1; i < count; ++i) v += warps[first + i];
  return v;
}

// The sum over a block of any number of warps, in every thread.
template <class acc_t>
__device__ __forceinline__ acc_t block_sum(acc_t v) {
  __shared__ acc_t warps[kOnChipThreads / kWarp];
#pragma unroll 1
  for (int d = kWarp / 2; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = v;
  __syncthreads();
  v = warps[0];
#pragma unroll 1
  for (int i = 1; i < int(blockDim.x) / kWarp; ++i) v += warps[i];
  return v;
}

__device__ __forceinline__ int64_t offset_of(const RowValues& values, int64_t n, int64_t c) {
  return n * values.sample_stride + c * values.channel_stride;
}

// Elementwise work on the rows of x, V elements a thread: a segment of the mask starts with a new byte, and so do its
// threads.
struct RowWalk {
  Divisor lanes;  // threads a segment, 8 / V a byte
  Divisor channels;
  int64_t length;  // of a segment
  int64_t plane_bytes;
  int64_t total;  // threads in all
  bool channels_last;

  RowWalk(const Rows& rows, int V)
      : lanes(mask_bytes(rows.segment_length()) * (8 / V)),
        channels(rows.channels),
        length(rows.segment_length()),
        plane_bytes(mask_bytes(length)),
        total(rows.segments() * lanes.value),
        channels_last(rows.channels_last) {}

  struct Place {
    int64_t segment, position, n, c;
    int64_t element;  // of x
    bool inside;
  };
  __device__ __forceinline__ Place locate(int64_t t, int V) const {
    Place p;
    p.segment = lanes.divide(t);
    p.position = (t - p.segment * lanes.value) * V;
    p.inside = t < total && p.position < length;
    p.element = fixed(p.segment * length + p.position);
    const int64_t quotient = channels.divide(channels_last ? p.position : p.segment);
    p.n = channels_last ? p.segment : quotient;
    p.c = (channels_last ? p.position : p.segment) - quotient * channels.value;
    return p;
  }
  // Goes on to the thread's next element; only in channels_last does it belong to another row.
  __device__ __forceinline__ void advance(Place& p) const {
    if (channels_last && ++p.c == channels.value) p.c = 0;
  }
};

// May RowWalk move V elements at once?
inline bool vectors_fit(const Rows& rows, int V) {
  return rows.segment_length() % V == 0 && (!rows.channels_last || rows.channels >= V);
}

inline int64_t accumulator_bytes(DType t) { return accumulates_in_double(t) ? sizeof(double) : sizeof(float); }

inline int64_t elementwise_blocks(int64_t total, int V) { return ceil_div(total, kThreads * elementwise_slots(V)); }

template <class... Pointers>
bool aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// f(scalar_t{}) with the type of a real dtype.
template <class F>
cudaError_t dispatch(DType dtype, F f) {
  switch (dtype) {
    case DType::kHalf:
      return f(__half{});
    case DType::kBFloat16:
      return f(__nv_bfloat16{});
    case DType::kFloat:
      return f(float{});
    case DType::kDouble:
      return f(double{});
    default:
      return cudaErrorInvalidValue;
  }
}

// f(scalar_t{}, V) with V = 16 bytes where `vectors(V)` allows, else 1.
template <class Vectors, class F>
cudaError_t dispatch(DType dtype, Vectors vectors, F f) {
  return dispatch(dtype, [&](auto scalar) {
    constexpr int kVector = 16 / sizeof(scalar);
    return vectors(kVector) ? f(scalar, std::integral_constant<int, kVector>{})
                            : f(scalar, std::integral_constant<int, 1>{});
  });
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (blocks <= 0) return cudaSuccess;
  if (blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(threads));
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) cudaGetLastError();  // it is reported here, not to whoever asks next
  return error;
}

}  // namespace drsn::cuda

#define DRSN_CUDA_TRY(call)                   \
  do {                                        \
    const cudaError_t error_ = (call);        \
    if (error_ != cudaSuccess) return error_; \
  } while (false)
