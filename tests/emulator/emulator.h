// What runs the kernels, for the headers that stand in for CUDA's and between the emulator's own files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulator {

constexpr unsigned kWarp = 32;

struct Place {
  const char* file;
  int line;
};

void barrier(Place place);
void cluster_barrier(Place place);
// Leaves the bits with the thread's warp; `published` are then those that a lane of it left.
void publish(uint64_t bits, Place place);
uint64_t published(unsigned lane);
// The block's variable of that key in shared memory.
void* shared(const void* key, size_t bytes, size_t alignment);
void wait_for_previous();
void let_next_start();
// `early`: the kernel may start before the one before has ended. `cluster`: the blocks are one cluster.
void run(unsigned blocks, unsigned threads, bool early, bool cluster, const std::function<void()>& kernel);

// Counted up at every launch, barrier and shuffle.
using Moment = uint64_t;
extern Moment now;

struct Launch {
  Moment start;
  Moment unfinished;  // what was done from then on may not have ended when a thread of this launch starts
};
extern Launch launch;

struct Thread {
  unsigned block, index;
  bool waited;              // for the kernels before
  Moment barrier, shuffle;  // the last of its block and of its warp
};
// The thread that runs; null in code of the host.
const Thread* current_thread();
bool in_stacks(const void* memory);

[[noreturn]] void fail(const char* what, const char* where);

// Of memory.cpp: no access to this memory, or to any, counts any more.
void forget(const void* memory, size_t bytes);
void forget_all();

}  // namespace emulator
