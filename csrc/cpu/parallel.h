// How the CPU kernels share work through PyTorch's own thread pool. Sums are cut by sizes alone, so that no result
// depends on the number of threads.
#pragma once

#include <algorithm>

#include "loops.h"
#include "torch_api.h"

namespace drsn::cpu {

constexpr int64_t kGrain = 32768;        // elements below which a second thread costs more than it brings
constexpr int64_t kCached = 8192;        // elements that stay in a thread's own cache between two passes
constexpr int64_t kStreamed = 12 << 20;  // bytes of an output that its reader would not find in the last-level cache

// Calls run(T{}) with the element type of a real dtype.
template <class Run>
void with_type(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::kHalf:
      return run(Half{});
    case DType::kBFloat16:
      return run(BFloat16{});
    case DType::kFloat:
      return run(float{});
    case DType::kDouble:
      return run(double{});
    default:
      throw std::invalid_argument("x: expected a real type");
  }
}

template <class T>
const T* as(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
T* as(void* p) {
  return static_cast<T*>(p);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether an output of `numel` elements in memory of its own goes past the caches.
template <class T>
bool streams(const T* out, const T* in, int64_t numel) {
  return out != in && numel * int64_t(sizeof(T)) >= kStreamed;
}

// Calls run(begin, end) on every thread for its part of `count` things; `elements` is the size of one.
template <class Run>
void for_each_part(int64_t count, int64_t elements, const Run& run) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(elements, 1));
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    run(begin, end);
    finish_streams();
  });
}

// Calls run(task) for every task; `elements` is the size of one.
template <class Run>
void for_each_task(int64_t tasks, int64_t elements, const Run& run) {
  for_each_part(tasks, elements, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) run(task);
  });
}

// Calls run(begin, n) for `step` of `count` things at a time; `elements` is the size of one thing.
template <class Run>
void for_each_range(int64_t count, int64_t step, int64_t elements, const Run& run) {
  for_each_task(ceil_div(count, step), std::min(count, step) * elements,
                [&](int64_t task) { run(task * step, std::min(step, count - task * step)); });
}

}  // namespace drsn::cpu
