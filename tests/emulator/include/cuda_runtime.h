// Stands in for CUDA's header of this name where csrc/cuda is compiled as C++ to run on a CPU: see emulator.cpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static  // blocks run one after the other

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

inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t((static_cast<unsigned __int128>(a) * b) >> 64); }

namespace emulator {

struct Place {
  const char* file;
  int line;
};

void barrier(Place place);
// Leaves each lane's bits with its warp and returns those of lane `lane ^ distance`.
uint64_t exchange(uint64_t bits, int distance, Place place);
void run(unsigned blocks, unsigned threads, const std::function<void()>& kernel);

template <class T>
T exchange_value(T value, int distance, Place place) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  bits = exchange(bits, distance, place);
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace emulator

#define __syncthreads() emulator::barrier({__FILE__, __LINE__})
#define __shfl_xor_sync(mask, value, distance) emulator::exchange_value(value, distance, {__FILE__, __LINE__})

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "the emulator refused a launch"; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  emulator::run(config->gridDim.x, config->blockDim.x, [&] { kernel(arguments...); });
  return cudaSuccess;
}
