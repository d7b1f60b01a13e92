// The host side of a call: which instance of a kernel, its scratch memory, its launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "cuda/plan.h"
#include "params.h"

#define DRSN_CUDA_TRY(call)                   \
  do {                                        \
    const cudaError_t error_ = (call);        \
    if (error_ != cudaSuccess) return error_; \
  } while (false)

namespace drsn::cuda {

// For __launch_bounds__: without a number of blocks ptxas would rather spill than pass 64 registers.
constexpr int kFewBlocks = 1;

inline int64_t accumulator_bytes(DType t) { return accumulates_in_double(t) ? sizeof(double) : sizeof(float); }

template <class... Pointers>
bool aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// Hands out arrays of a workspace, aligned to 16 bytes; without memory it only counts.
class Carve {
 public:
  Carve(void* workspace, DType dtype) : base_(static_cast<char*>(workspace)), bytes_(accumulator_bytes(dtype)) {}
  void* take(int64_t accumulators) {
    char* const start = base_ == nullptr ? nullptr : base_ + used_;
    used_ += ceil_div(accumulators * bytes_, 16) * 16;
    return start;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t bytes_, used_ = 0;
};

// The bytes that Arrays(op, carve) takes.
template <class Arrays, class Op>
int64_t workspace_of(const Op& op) {
  Carve carve(nullptr, op.dtype);
  Arrays(op, carve);
  return carve.used();
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

// f(acc_t{}) with the accumulator's type.
template <class F>
cudaError_t dispatch_accumulator(DType dtype, F f) {
  return accumulates_in_double(dtype) ? f(double{}) : f(float{});
}

// The kernels of a call run one after the other. Where their code is compiled for 9.0 or newer, launch_next brings a
// kernel onto the device while the one before it in the stream still runs. The order is kept:
//   - Every kernel begins with wait_for_previous(), in every thread, before any access to memory and before any return.
//     It waits there until the kernel before has ended and everything that this wrote is seen.
//   - So no kernel ends before those before it have, whatever they read or write, and what follows a call in its stream
//     (another call, an event, a copy, memory that the allocator gives out again) follows all of its kernels.
//   - The first kernel of a call follows the work of others; `launch` lets it begin after all of that.
//   - What another thread puts between two kernels of a call has a place in the same order, and so have the nodes of a
//     graph that captures the stream.
__device__ __forceinline__ void wait_for_previous() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();  // behind the wait: no more than one kernel waits for the one that runs
#endif
}

// Waits for every thread of a launch of one block or one cluster; what they have written is seen from then on.
__device__ __forceinline__ void wait_for_cluster() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  if (gridDim.x > 1) {
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
    return;
  }
#endif
  __syncthreads();
}

// True if the code that the current device runs is compiled for 9.0 or newer: it waits for kernels and has clusters. A
// new device may run what was compiled for an old one. All kernels are compiled alike, so that what holds for one on a
// device holds for all.
inline bool compiled_for_hopper(const void* kernel) {
  constexpr int kDevices = 64;
  static std::atomic<int> versions[kDevices];  // 0: not asked yet
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return false;
  int version = versions[device].load(std::memory_order_relaxed);
  if (version == 0) {
    cudaFuncAttributes attributes{};
    if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) {
      cudaGetLastError();  // the launch will meet it again
      return false;
    }
    version = attributes.ptxVersion;
    versions[device].store(version, std::memory_order_relaxed);
  }
  return version >= 90;
}

// Where a kernel is launched, whether another one of the same call is before it there, and whether all its blocks are
// one cluster: on the device at the same time, with a barrier.
struct Stream {
  cudaStream_t handle;
  bool follows;
  bool cluster;

  Stream(cudaStream_t stream, bool follows_another = false, bool one_cluster = false)
      : handle(stream), follows(follows_another), cluster(one_cluster) {}
  operator cudaStream_t() const { return handle; }
};

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, Stream stream,
                   const Arguments&... arguments) {
  if (blocks <= 0) return cudaSuccess;
  if (blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(threads));
  config.stream = stream;
  cudaLaunchAttribute attributes[2]{};
  config.attrs = attributes;
  if (stream.follows && compiled_for_hopper(reinterpret_cast<const void*>(kernel))) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (stream.cluster) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = config.gridDim.x;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  }
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) cudaGetLastError();  // cleared: the next caller must not find it
  return error;
}

// For a kernel that follows another one of the same call.
template <class... Parameters, class... Arguments>
cudaError_t launch_next(void (*kernel)(Parameters...), int64_t blocks, int threads, Stream stream,
                        const Arguments&... arguments) {
  stream.follows = true;
  return launch(kernel, blocks, threads, stream, arguments...);
}

}  // namespace drsn::cuda
