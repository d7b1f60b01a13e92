// Runs the kernels of csrc/cuda, compiled as C++, on a CPU. Each thread of a block is a fiber. The order of fibers and
// of blocks is another for every launch, and up to eight blocks take turns, so that a result which depends on the order
// changes from run to run; the number given to seed_emulator brings an order back. What a GPU leaves undefined ends the
// process: a shuffle that only part of a warp reaches, a barrier that only some of the threads that have not ended
// reach, a kernel that may start early and does not wait for the one before, and what memory.cpp watches for.
#include "emulator.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_runtime.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

Moment now;
Launch launch;

namespace {

constexpr unsigned kMostThreads = 1024;
constexpr unsigned kMostResident = 8;
constexpr size_t kStack = 256 * 1024;
constexpr size_t kStacks = kMostResident * kMostThreads * kStack;

enum class Wait { kNothing, kExchange, kBarrier, kCluster, kEnd };

struct Fiber {
  char* stack;
  jmp_buf here;
  bool started;
  Wait wait;
  Place place;
  uint64_t offered, published;
  Thread thread;
};

struct SharedVariable {
  const void* key;
  std::unique_ptr<void, decltype(&std::free)> memory;
  void* start;
};

struct Block {
  unsigned index;
  std::vector<Fiber> fibers;
  std::vector<unsigned> warps;  // that have not run since the last barrier
  std::vector<SharedVariable> shared;
};

std::mutex one_launch_at_a_time;
char* stacks;
Block residents[kMostResident];
Block* block;  // that runs, and its thread
Fiber* fiber;
unsigned threads_of_launch;
const std::function<void()>* kernel_of_launch;
bool early_launch, cluster_launch;
Moment start_of_launch;
bool next_may_start_early;  // before all threads have waited
jmp_buf scheduler;
int errors = STDERR_FILENO;
uint64_t seed;
std::mt19937 order;

[[noreturn]] void fail_at(const char* what, const Place& place) {
  char where[1000];
  std::snprintf(where, sizeof(where), "%s:%d", place.file, place.line);
  fail(what, where);
}

void run_kernel() {
  for (;;) {
    (*kernel_of_launch)();
    if (!fiber->thread.waited) fail("a thread ends without having waited for the kernel before", "a kernel");
    fiber->wait = Wait::kEnd;
    if (_setjmp(fiber->here) == 0) _longjmp(scheduler, 1);
  }
}

void pause(Wait wait, Place place) {
  fiber->wait = wait;
  fiber->place = place;
  if (_setjmp(fiber->here) == 0) _longjmp(scheduler, 1);
}

void resume(Fiber& next) {
  fiber = &next;
  threadIdx.x = next.thread.index;
  blockIdx.x = next.thread.block;
  if (_setjmp(scheduler) != 0) {
    fiber = nullptr;
    return;
  }
  if (fiber->started) _longjmp(fiber->here, 1);
  fiber->started = true;
  ucontext_t start;
  getcontext(&start);
  start.uc_stack.ss_sp = fiber->stack;
  start.uc_stack.ss_size = kStack;
  makecontext(&start, &run_kernel, 0);
  setcontext(&start);
}

// Ends the process unless all of these threads wait at one place, or have ended where `ends` allows it.
void check_together(unsigned begin, unsigned end, bool ends, const char* what) {
  const Fiber* first = nullptr;
  for (unsigned i = begin; i < end; ++i) {
    Fiber& next = block->fibers[i];
    if (next.wait == Wait::kEnd && ends) continue;
    if (first == nullptr) first = &next;
    if (next.wait == first->wait && next.place.line == first->place.line && next.place.file == first->place.file) {
      continue;
    }
    fiber = &next;
    fail_at(what, next.wait == Wait::kEnd ? first->place : next.place);
  }
}

// Runs the threads of a warp until none of them waits for a shuffle.
void run_warp(unsigned warp) {
  const unsigned begin = warp * kWarp, end = begin + kWarp;
  Fiber* const fibers = block->fibers.data();
  unsigned threads[kWarp];
  for (;;) {
    std::iota(threads, threads + kWarp, begin);
    std::shuffle(threads, threads + kWarp, order);
    for (unsigned i : threads) {
      if (fibers[i].wait == Wait::kNothing || fibers[i].wait == Wait::kExchange) resume(fibers[i]);
    }
    const auto exchanges = [](const Fiber& fiber) { return fiber.wait == Wait::kExchange; };
    if (std::none_of(fibers + begin, fibers + end, exchanges)) return;
    check_together(begin, end, false, "a shuffle that not the whole warp reaches");
    ++now;
    for (unsigned i = begin; i < end; ++i) {
      fibers[i].published = fibers[i].offered;
      fibers[i].thread.shuffle = now;
    }
  }
}

void shuffle_warps() {
  block->warps.resize(threads_of_launch / kWarp);
  std::iota(block->warps.begin(), block->warps.end(), 0);
  std::shuffle(block->warps.begin(), block->warps.end(), order);
}

void start_block(unsigned index) {
  const size_t first_stack = (block - residents) * kMostThreads;
  while (block->fibers.size() < threads_of_launch) {
    Fiber next{};
    next.stack = stacks + (first_stack + block->fibers.size()) * kStack;
    block->fibers.push_back(next);
  }
  for (unsigned i = 0; i < threads_of_launch; ++i) {
    block->fibers[i].wait = Wait::kNothing;
    block->fibers[i].thread = {index, i, !early_launch, now, now};
  }
  block->shared.clear();
  shuffle_warps();
}

// Lets the threads of the block go on.
void pass_barrier() {
  for (unsigned i = 0; i < threads_of_launch; ++i) {
    Fiber& next = block->fibers[i];
    if (next.wait == Wait::kEnd) continue;
    next.wait = Wait::kNothing;
    next.thread.barrier = now;
  }
  shuffle_warps();
}

// Runs one more warp of the block up to the barrier, and returns what the block waits for then.
Wait run_block() {
  run_warp(block->warps.back());
  block->warps.pop_back();
  if (!block->warps.empty()) return Wait::kNothing;
  check_together(0, threads_of_launch, true, "a barrier that not every thread reaches");
  Wait wait = Wait::kEnd;
  for (unsigned i = 0; i < threads_of_launch; ++i) wait = std::min(wait, block->fibers[i].wait);
  if (wait != Wait::kBarrier) return wait;
  ++now;
  pass_barrier();
  return Wait::kNothing;
}

}  // namespace

void fail(const char* what, const char* where) {
  const Thread thread = fiber == nullptr ? Thread{} : fiber->thread;
  dprintf(errors, "%s: %s (thread %u of block %u; the emulator's seed was %llu)\n", where, what, thread.index,
          thread.block, static_cast<unsigned long long>(seed));
  std::abort();
}

const Thread* current_thread() {
  const char* const here = static_cast<const char*>(__builtin_frame_address(0));
  return here >= stacks && here < stacks + kStacks ? &fiber->thread : nullptr;
}

bool in_stacks(const void* memory) {
  return static_cast<const char*>(memory) >= stacks && static_cast<const char*>(memory) < stacks + kStacks;
}

void barrier(Place place) { pause(Wait::kBarrier, place); }

void cluster_barrier(Place place) {
  if (!cluster_launch) fail_at("a cluster's barrier in a launch without one", place);
  pause(Wait::kCluster, place);
}

void publish(uint64_t bits, Place place) {
  fiber->offered = bits;
  pause(Wait::kExchange, place);
}

uint64_t published(unsigned lane) { return block->fibers[fiber->thread.index / kWarp * kWarp + lane].published; }

void* shared(const void* key, size_t bytes, size_t alignment) {
  for (const SharedVariable& variable : block->shared) {
    if (variable.key == key) return variable.start;
  }
  // No better aligned than its type, and with no room behind it.
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(2 * alignment, sizeof(void*)), alignment + bytes) != 0) std::abort();
  void* const start = static_cast<char*>(memory) + alignment;
  block->shared.push_back({key, {memory, &std::free}, start});
  std::memset(start, 0xff, bytes);  // NaN in every type
  forget(start, bytes);
  return start;
}

void wait_for_previous() { fiber->thread.waited = true; }

void let_next_start() {
  if (!fiber->thread.waited) next_may_start_early = true;
}

void run(unsigned blocks, unsigned threads, bool early, bool cluster, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  if (threads % kWarp != 0 || threads > kMostThreads) {
    fail("a block of part of a warp, or too large", "a launch");
  }
  if (cluster && blocks > kMostResident) fail("a cluster that is too large", "a launch");
  if (stacks == nullptr) {
    stacks = static_cast<char*>(
        mmap(nullptr, kStacks, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) fail("no memory for stacks", "a launch");
  }
  const Launch before = launch;
  launch.start = ++now;
  launch.unfinished = !early ? launch.start : next_may_start_early ? before.unfinished : start_of_launch;
  start_of_launch = launch.start;
  if (!early) forget_all();
  early_launch = early;
  cluster_launch = cluster;
  next_may_start_early = false;
  kernel_of_launch = &kernel;
  threads_of_launch = threads;
  gridDim.x = blocks;
  blockDim.x = threads;

  std::vector<unsigned> all(blocks);
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), order);
  std::vector<Block*> running, waiting;
  const unsigned most = cluster ? blocks : std::min(1 + unsigned(order() % kMostResident), blocks);
  for (unsigned i = 0; i < most; ++i) {
    running.push_back(block = &residents[i]);
    start_block(all.back());
    all.pop_back();
  }
  while (!running.empty()) {
    Block*& chosen = running[order() % running.size()];
    block = chosen;
    const Wait wait = run_block();
    if (wait == Wait::kNothing) continue;
    if (wait == Wait::kCluster) waiting.push_back(block);
    if (all.empty()) {
      chosen = running.back();
      running.pop_back();
    } else {
      start_block(all.back());
      all.pop_back();
    }
    if (!running.empty() || waiting.empty()) continue;
    if (waiting.size() < blocks) fail("a cluster's barrier that not every block reaches", "a launch");
    launch.start = ++now;  // what was done before is done, for every block
    running.swap(waiting);
    for (Block* next : running) {
      block = next;
      pass_barrier();
    }
  }
}

}  // namespace emulator

extern "C" {
// The order of threads and blocks from here on.
__attribute__((visibility("default"))) void seed_emulator(uint64_t seed) {
  const std::lock_guard<std::mutex> lock(emulator::one_launch_at_a_time);
  emulator::seed = seed;
  emulator::order.seed(seed);
}

// Where what ends the process is told.
__attribute__((visibility("default"))) void tell_errors_to(int file) { emulator::errors = file; }
}
