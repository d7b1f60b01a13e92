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

// The value of `lane`.
template <class T>
T shuffle(T value, unsigned lane, Place place) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  publish(bits, place);
  bits = published(lane);
  std::memcpy(&value, &bits, sizeof(value));
  return value;
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
#define __shfl_xor_sync(mask, value, distance) \
  emulator::shuffle(value, emulator::own_lane() ^ unsigned(distance), EMULATOR_PLACE)

inline void cudaGridDependencySynchronize() { emulator::wait_for_previous(); }
inline void cudaTriggerProgrammaticLaunchCompletion() { emulator::let_next_start(); }

inline void __cluster_barrier_arrive() {}
inline unsigned __float_as_uint(float v) { return emulator::same_bits<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return emulator::same_bits<float>(v); }
// The upper word of both as one number, shifted.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return unsigned(((uint64_t(high) << 32 | low) << by % 32) >> 32);
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
  // by reference: a std::function would copy it to the heap, where shared memory has been
  const auto call = [&] { kernel(arguments...); };
  emulator::run(config->gridDim.x, config->blockDim.x, early, cluster > 0, std::ref(call));
  return cudaSuccess;
}
