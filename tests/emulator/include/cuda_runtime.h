// Stands in for CUDA's header of this name where csrc/cuda is compiled as C++ to run on a CPU: see emulator.cpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../emulator.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
// The Makefile writes `__shared__ type name;` as `auto& name = EMULATED_SHARED(type);`.
#define EMULATED_SHARED(...)                  \
  emulator::shared_variable<__VA_ARGS__>([] { \
    static char of_this_instance;             \
    return &of_this_instance;                 \
  }())

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned width) : x(width) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// Of the thread that runs.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

using std::exp, std::hypot, std::max, std::min, std::sqrt;

inline void __stwb(uint4* p, uint4 v) { *p = v; }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t((static_cast<unsigned __int128>(a) * b) >> 64); }

namespace emulator {

inline unsigned own_lane() { return threadIdx.x % kWarp; }

// The value of `lane`; one's own where there is no such lane.
template <class T>
T shuffle(T value, unsigned lane, Place place) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  publish(bits, place);
  bits = published(lane < kWarp ? lane : own_lane());
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline unsigned ballot(bool vote, Place place) {
  publish(vote, place);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) votes |= unsigned(published(lane)) << lane;
  return votes;
}

template <class T>
T& shared_variable(const void* key) {
  return *static_cast<T*>(shared(key, sizeof(T), alignof(T)));
}

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace emulator

#define EMULATOR_PLACE \
  emulator::Place { __FILE__, __LINE__ }
#define __syncthreads() emulator::barrier(EMULATOR_PLACE)
#define __cluster_barrier_wait() emulator::cluster_barrier(EMULATOR_PLACE)
#define __syncwarp() emulator::publish(0, EMULATOR_PLACE)
#define __shfl_sync(mask, value, lane) emulator::shuffle(value, (lane) % 32u, EMULATOR_PLACE)
#define __shfl_xor_sync(mask, value, distance) \
  emulator::shuffle(value, emulator::own_lane() ^ unsigned(distance), EMULATOR_PLACE)
#define __shfl_up_sync(mask, value, distance) \
  emulator::shuffle(value, emulator::own_lane() - unsigned(distance), EMULATOR_PLACE)
#define __shfl_down_sync(mask, value, distance) \
  emulator::shuffle(value, emulator::own_lane() + unsigned(distance), EMULATOR_PLACE)
#define __ballot_sync(mask, vote) emulator::ballot(vote, EMULATOR_PLACE)

inline void cudaGridDependencySynchronize() { emulator::wait_for_previous(); }
inline void cudaTriggerProgrammaticLaunchCompletion() { emulator::let_next_start(); }

inline void __threadfence() {}
inline void __cluster_barrier_arrive() {}
template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}

inline unsigned __float_as_uint(float v) { return emulator::same_bits<unsigned>(v); }
inline int __float_as_int(float v) { return emulator::same_bits<int>(v); }
inline float __uint_as_float(unsigned v) { return emulator::same_bits<float>(v); }
inline float __int_as_float(int v) { return emulator::same_bits<float>(v); }
inline long long __double_as_longlong(double v) { return emulator::same_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return emulator::same_bits<double>(v); }
inline int __double2hiint(double v) { return int(uint64_t(__double_as_longlong(v)) >> 32); }
inline int __double2loint(double v) { return int(__double_as_longlong(v)); }

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(unsigned(v)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
// The words as one number of 64 bits, shifted; the c of the last two stops at 32, the others wrap.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return unsigned(((uint64_t(high) << 32 | low) << by % 32) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return unsigned((uint64_t(high) << 32 | low) >> by % 32);
}
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned by) {
  return by >= 32 ? low : __funnelshift_l(low, high, by);
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned by) {
  return by >= 32 ? high : __funnelshift_r(low, high, by);
}
// Byte i is the one of b:a that nibble i of the selector names, or eight times its sign.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned nibble = selector >> 4 * i;
    const unsigned byte = unsigned((uint64_t(b) << 32 | a) >> 8 * (nibble & 7)) & 0xff;
    result |= ((nibble & 8) == 0 ? byte : (byte & 0x80) == 0 ? 0u : 0xffu) << 8 * i;
  }
  return result;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "the emulator refused a launch"; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
struct cudaFuncAttributes {
  int ptxVersion;
};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = 90;
  return cudaSuccess;
}

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization, cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  bool early = false;
  unsigned cluster = 0;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    early |= config->attrs[i].val.programmaticStreamSerializationAllowed;
    cluster |= config->attrs[i].val.clusterDim.x;
  }
  if (cluster > 0 && cluster != config->gridDim.x) return cudaErrorInvalidConfiguration;  // several are not emulated
  emulator::run(config->gridDim.x, config->blockDim.x, early, cluster > 0, [&] { kernel(arguments...); });
  return cudaSuccess;
}
