// Kernels for tests/test_emulator.py: what must end the process or show in the result, and right ones beside it.
#include <cuda_runtime.h>

#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda/vectors.cuh"

extern "C" void seed_emulator(uint64_t seed);

namespace {

constexpr int kThreads = 64;
constexpr int kBlocks = 8;
alignas(16) float memory[3][kThreads * kBlocks];
float *const in = memory[0], *const out = memory[1], *const other = memory[2];

template <class... Parameters, class... Arguments>
void launch_with(cudaLaunchAttribute attribute, void (*kernel)(Parameters...), const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kBlocks);
  config.blockDim = dim3(kThreads);
  config.attrs = &attribute;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <class... Parameters, class... Arguments>
void launch(bool early, void (*kernel)(Parameters...), const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = early;
  launch_with(attribute, kernel, arguments...);
}

template <class... Parameters, class... Arguments>
void launch_cluster(void (*kernel)(Parameters...), const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = kBlocks;
  launch_with(attribute, kernel, arguments...);
}

__device__ int own() { return blockIdx.x * blockDim.x + threadIdx.x; }

// Each block writes the half of the shared memory that its neighbours in time do not, and reads a value of `half`.
__global__ void read_shared(int half) {
  __shared__ float shared[2][kThreads];
  shared[blockIdx.x % 2][threadIdx.x] = 1;
  __syncthreads();
  out[own()] = shared[(blockIdx.x + half) % 2][threadIdx.x];
}

// Some blocks do without the shared memory, which those before them in their place have left.
__global__ void write_shared() {
  if (blockIdx.x % 2 != 0) return;
  __shared__ float shared[1];
  if (threadIdx.x == 0) shared[0] = 1;
}

enum class Between { kNothing, kWarps, kBlocks };

// Reads what the thread `distance` further on has written.
__global__ void read_neighbour(int distance, Between synchronized) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = 1;
  if (synchronized == Between::kWarps) __syncwarp();
  if (synchronized == Between::kBlocks) __syncthreads();
  out[own()] = shared[threadIdx.x ^ distance];
}

__global__ void add_in_place(int distance) { out[own()] += out[(own() + distance) % (kThreads * kBlocks)]; }

// Reads what the next block has written; the first `waiting` blocks wait for each other.
__global__ void read_block(unsigned waiting, bool all_read) {
  other[own()] = 1;
  if (blockIdx.x < waiting) {
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
  }
  if (blockIdx.x < waiting || all_read) out[own()] = other[(own() + kThreads) % (kThreads * kBlocks)];
}

__global__ void load_vector(int offset) { out[own()] = drsn::cuda::load_if<4>(true, in + offset).bits.x; }
__global__ void load_shared_vector() {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = 1;
  __syncthreads();
  out[own()] = drsn::cuda::load_if<4>(true, shared).bits.x;
}

__global__ void shuffle_below(unsigned count) {
  if (threadIdx.x < count) out[own()] = __shfl_xor_sync(~0u, 1.f, 1);
}
__global__ void barrier_below(unsigned count) {
  if (threadIdx.x < count) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void copy(const float* from, float* to) { to[own()] = from[own()]; }
__global__ void copy_then_wait(const float* from, float* to) {
  to[own()] = from[own()];
  cudaGridDependencySynchronize();
}
__global__ void wait_then_copy(const float* from, float* to) {
  cudaGridDependencySynchronize();
  to[own()] = from[own()];
}
__global__ void wait(bool let_next_start_before) {
  if (let_next_start_before) cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  if (!let_next_start_before) cudaTriggerProgrammaticLaunchCompletion();
}
__global__ void wait_below(unsigned count) {
  if (threadIdx.x < count) cudaGridDependencySynchronize();
}

__attribute__((no_sanitize("thread"))) void note() {
  if (threadIdx.x == 0) std::printf("%u ", blockIdx.x);
}
__global__ void print_blocks() {
  note();
  __syncthreads();
  note();
}

// 0 where the product is rounded before the difference.
__global__ void round_product(float x, float rounded) { out[own()] = x * x - rounded; }

const std::map<std::string, std::function<void()>> programs = {
    {"shared memory that is written", [] { launch(false, read_shared, 0); }},
    {"shared memory that is not written", [] { launch(false, read_shared, 1); }},
    {"a neighbour behind a barrier", [] { launch(false, read_neighbour, 32, Between::kBlocks); }},
    {"a neighbour behind no barrier", [] { launch(false, read_neighbour, 32, Between::kNothing); }},
    {"a neighbour of another warp behind a shuffle", [] { launch(false, read_neighbour, 32, Between::kWarps); }},
    {"a neighbour of the warp behind a shuffle", [] { launch(false, read_neighbour, 1, Between::kWarps); }},
    {"a neighbour of the warp behind no shuffle", [] { launch(false, read_neighbour, 1, Between::kNothing); }},
    {"in place, one's own element", [] { launch(false, add_in_place, 0); }},
    {"in place, another block's element", [] { launch(false, add_in_place, kThreads); }},
    {"another block's element behind a cluster's barrier", [] { launch_cluster(read_block, 8u, true); }},
    {"another block's element behind no barrier", [] { launch_cluster(read_block, 0u, true); }},
    {"a cluster's barrier of some blocks", [] { launch_cluster(read_block, 7u, false); }},
    {"a cluster's barrier without a cluster", [] { launch(false, read_block, 8u, true); }},
    {"a vector", [] { launch(false, load_vector, 4); }},
    {"a misaligned vector", [] { launch(false, load_vector, 2); }},
    {"a misaligned vector of shared memory", [] { launch(false, load_shared_vector); }},
    {"a shuffle", [] { launch(false, shuffle_below, 32u); }},
    {"a shuffle of part of a warp", [] { launch(false, shuffle_below, 31u); }},
    {"a barrier", [] { launch(false, barrier_below, 64u); }},
    {"a barrier that some threads pass elsewhere", [] { launch(false, barrier_below, 32u); }},
    {"early, waits", [] { launch(false, copy, in, out), launch(true, wait_then_copy, out, other); }},
    {"early, reads before it waits", [] { launch(false, copy, in, out), launch(true, copy_then_wait, out, other); }},
    {"early, writes before it waits", [] { launch(false, copy, in, out), launch(true, copy_then_wait, other, in); }},
    {"early, waits for nothing it needs",
     [] { launch(false, copy, in, out), launch(true, copy_then_wait, in, other); }},
    {"early, does not wait in every thread", [] { launch(false, copy, in, out), launch(true, wait_below, 63u); }},
    {"early, two behind one that has waited",
     [] { launch(false, copy, in, out), launch(true, wait, false), launch(true, copy_then_wait, out, other); }},
    {"early, two behind one that has not waited",
     [] { launch(false, copy, in, out), launch(true, wait, true), launch(true, copy_then_wait, out, other); }},
    {"early, behind one with shared memory",
     [] {
       for (int i = 0; i < 10; ++i) launch(false, write_shared), launch(true, wait_then_copy, in, other);
     }},
    {"blocks", [] { launch(false, print_blocks); }},
    {"a product and a difference", [] { launch(false, round_product, 1 + 0x1p-12f, 1 + 0x1p-11f); }},
};

}  // namespace

int main(int, char** arguments) {
  seed_emulator(std::stoull(arguments[2]));
  for (float& value : memory[0]) value = 1;
  programs.at(arguments[1])();
  std::printf("%g\n", double(out[0]));
}
