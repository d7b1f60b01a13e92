// Runs the kernels of csrc/cuda, compiled as C++, on a CPU. Each thread of a block is a fiber. The order of fibers and
// of blocks is another for every launch, so that a result which depends on it changes from run to run. What a GPU
// leaves undefined ends the process: a shuffle that only part of a warp reaches, or a barrier that only some of the
// threads that have not ended reach.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_runtime.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kStack = 256 * 1024;

enum class Wait { kNothing, kExchange, kBarrier, kEnd };

struct Fiber {
  std::unique_ptr<char[]> stack;
  ucontext_t start;
  jmp_buf here;
  bool started;
  Wait wait;
  Place place;
  uint64_t offered, published;
};

std::mutex one_launch_at_a_time;
std::vector<Fiber> fibers;
unsigned running;  // index of the fiber
jmp_buf scheduler;
const std::function<void()>* kernel_of_launch;
std::mt19937 order;

[[noreturn]] void fail(const char* what, const Place& place) {
  std::fprintf(stderr, "%s:%d: %s (thread %u of block %u)\n", place.file, place.line, what, running, blockIdx.x);
  std::abort();
}

void enter() {
  (*kernel_of_launch)();
  fibers[running].wait = Wait::kEnd;
  _longjmp(scheduler, 1);
}

void pause(Wait wait, Place place) {
  Fiber& fiber = fibers[running];
  fiber.wait = wait;
  fiber.place = place;
  if (_setjmp(fiber.here) == 0) _longjmp(scheduler, 1);
}

void resume(unsigned index) {
  running = index;
  threadIdx.x = index;
  Fiber& fiber = fibers[index];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStack;
  makecontext(&fiber.start, &enter, 0);
  setcontext(&fiber.start);
}

// Ends the process unless all of these threads wait at one place, or have ended where `ends` allows it.
void check_together(unsigned begin, unsigned end, bool ends, const char* what) {
  const Fiber* first = nullptr;
  for (unsigned i = begin; i < end; ++i) {
    const Fiber& fiber = fibers[i];
    if (fiber.wait == Wait::kEnd && ends) continue;
    if (first == nullptr) first = &fiber;
    if (fiber.wait == first->wait && fiber.place.line == first->place.line && fiber.place.file == first->place.file) {
      continue;
    }
    running = i;
    fail(what, fiber.wait == Wait::kEnd ? first->place : fiber.place);
  }
}

// Runs the threads of a warp until none of them waits for a shuffle.
void run_warp(unsigned begin, unsigned end) {
  std::vector<unsigned> threads(end - begin);
  for (;;) {
    std::iota(threads.begin(), threads.end(), begin);
    std::shuffle(threads.begin(), threads.end(), order);
    for (unsigned i : threads) {
      if (fibers[i].wait == Wait::kNothing || fibers[i].wait == Wait::kExchange) resume(i);
    }
    const auto exchanges = [](const Fiber& fiber) { return fiber.wait == Wait::kExchange; };
    if (std::none_of(fibers.begin() + begin, fibers.begin() + end, exchanges)) return;
    check_together(begin, end, false, "a shuffle that not the whole warp reaches");
    for (unsigned i = begin; i < end; ++i) fibers[i].published = fibers[i].offered;
  }
}

void run_block(unsigned threads) {
  for (unsigned i = 0; i < threads; ++i) {
    fibers[i].started = false;
    fibers[i].wait = Wait::kNothing;
  }
  std::vector<unsigned> warps(threads / kWarp);
  for (;;) {
    std::iota(warps.begin(), warps.end(), 0);
    std::shuffle(warps.begin(), warps.end(), order);
    for (unsigned warp : warps) run_warp(warp * kWarp, (warp + 1) * kWarp);
    check_together(0, threads, true, "a barrier that not every thread reaches");
    bool ended = true;
    for (unsigned i = 0; i < threads; ++i) {
      if (fibers[i].wait == Wait::kEnd) continue;
      fibers[i].wait = Wait::kNothing;
      ended = false;
    }
    if (ended) return;
  }
}

}  // namespace

void barrier(Place place) { pause(Wait::kBarrier, place); }

void publish(uint64_t bits, Place place) {
  fibers[running].offered = bits;
  pause(Wait::kExchange, place);
}

uint64_t published(unsigned lane) { return fibers[running / kWarp * kWarp + lane].published; }

void run(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  if (threads % kWarp != 0 || threads > kMostThreads)
    fail("a block of part of a warp, or too large", {__FILE__, __LINE__});
  while (fibers.size() < threads) {
    Fiber fiber{};
    fiber.stack = std::make_unique<char[]>(kStack);
    fibers.push_back(std::move(fiber));
  }
  kernel_of_launch = &kernel;
  gridDim.x = blocks;
  blockDim.x = threads;
  std::vector<unsigned> all(blocks);
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), order);
  for (unsigned block : all) {
    blockIdx.x = block;
    run_block(threads);
  }
}

}  // namespace emulator
