// Element types and 16-byte access to memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace drsn::cuda {

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

// A vector as it is loaded: 32-bit words. As elements, the compiler would split it when it arrives.
template <class scalar_t, int V>
struct Packed {
  std::conditional_t<V == 1, scalar_t, uint4> bits;
};

// The elements. The empty asm hides where they come from: the compiler does not keep them, widened, for the next use.
template <class scalar_t, int V>
__device__ __forceinline__ Vector<scalar_t, V> unpack(const Packed<scalar_t, V>& packed) {
  auto bits = packed.bits;
  if constexpr (V > 1 && sizeof(scalar_t) == 2) asm("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
  Vector<scalar_t, V> v;
  memcpy(&v, &bits, sizeof(v));
  return v;
}

// The elements, widened. Of two bfloat16 in a word the compiler would take the second one out before it widens it.
template <class scalar_t, int V>
__device__ __forceinline__ Vector<Accumulator<scalar_t>, V> unpack_wide(const Packed<scalar_t, V>& packed) {
  const Vector<scalar_t, V> v = unpack(packed);
  Vector<Accumulator<scalar_t>, V> wide;
  if constexpr (V > 1 && std::is_same_v<scalar_t, __nv_bfloat16>) {
    unsigned words[V / 2];
    memcpy(words, &v, sizeof(v));
#pragma unroll
    for (int j = 0; j < V; ++j)
      wide.value[j] = __uint_as_float(j % 2 == 0 ? words[j / 2] << 16 : words[j / 2] & ~0xffffu);
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) wide.value[j] = widen(v.value[j]);
  }
  return wide;
}

// V elements in one access, zeros where not `inside`; p is aligned to the vector.
template <int V, class scalar_t>
__device__ __forceinline__ Packed<scalar_t, V> load_if(bool inside, const scalar_t* p) {
  if constexpr (V == 1) {
    return {inside ? *p : scalar_t{}};
  } else {
    static_assert(sizeof(scalar_t) * V == sizeof(uint4));
    return {inside ? *reinterpret_cast<const uint4*>(p) : uint4{0, 0, 0, 0}};
  }
}

// V neighbouring numbers from p, in 16-byte accesses where p allows it.
template <int V, class acc_t, class number_t>
__device__ __forceinline__ void load_numbers(acc_t (&out)[V], const number_t* p) {
  constexpr int kOnce = 16 / sizeof(number_t);
  if constexpr (V % kOnce == 0) {
    if (reinterpret_cast<uintptr_t>(p) % 16 == 0) {
#pragma unroll
      for (int i = 0; i < V; i += kOnce) {
        const Vector<number_t, kOnce> numbers = unpack(load_if<kOnce>(true, p + i));
#pragma unroll
        for (int j = 0; j < kOnce; ++j) out[i + j] = widen(numbers.value[j]);
      }
      return;
    }
  }
#pragma unroll
  for (int j = 0; j < V; ++j) out[j] = widen(p[j]);
}

// Of `length` elements, those in whole vectors. A cut-off vector is handled with those that share its byte of mask.
template <int V, class index_t>
__device__ __forceinline__ index_t whole_vectors(index_t length) {
  return length % V == 0 ? length : length / 8 * 8;
}

// How much of a vector is there: true or false, or the number of elements that are left of a tensor that may end inside
// it. The latter moves them one by one.
template <int V, class left_t, class scalar_t>
__device__ __forceinline__ Packed<scalar_t, V> load(left_t left, const scalar_t* p) {
  if constexpr (V == 1 || std::is_same_v<left_t, bool>) {
    return load_if<V>(left > 0, p);
  } else {
    Vector<scalar_t, V> v;
#pragma unroll
    for (int j = 0; j < V; ++j) v.value[j] = j < left ? p[j] : scalar_t{};
    Packed<scalar_t, V> packed;
    memcpy(&packed, &v, sizeof(v));
    return packed;
  }
}

template <int V, class left_t, class scalar_t>
__device__ __forceinline__ void store(left_t left, scalar_t* p, const Vector<scalar_t, V>& v) {
  if constexpr (V == 1) {
    if (left > 0) *p = v.value[0];
  } else if constexpr (std::is_same_v<left_t, bool>) {
    uint4 bits;
    memcpy(&bits, &v, sizeof(v));
    if (left) __stwb(reinterpret_cast<uint4*>(p), bits);  // an assignment is at times split into elements
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if (j < left) p[j] = v.value[j];
    }
  }
}

// Brings the memory at p nearer.
__device__ __forceinline__ void prefetch(const void* p) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}

// Hides how an offset was computed: the compiler would otherwise compute it anew for every access.
__device__ __forceinline__ int64_t fixed(int64_t offset) {
#if defined(__CUDA_ARCH__)
  asm("" : "+l"(offset));
#endif
  return offset;
}

}  // namespace drsn::cuda
