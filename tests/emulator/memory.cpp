// Watches the kernels' accesses to memory: -fsanitize=thread has the compiler call the __tsan functions below before
// each of them, and -fsanitize=alignment the __ubsan function where a pointer is not aligned to its type. What a GPU
// leaves undefined ends the process:
// - two threads access a byte, one of them writes, and no barrier lies between (no shuffle, for threads of a warp);
//   between blocks of one kernel nothing does
// - a kernel that may start early reads what the kernels before write, or writes what they read or write, without
//   having waited for them
// - a vector that is not aligned.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <memory>
#include <unordered_map>
#include <vector>

#include "emulator.h"

namespace emulator {
namespace {

constexpr unsigned kSeveral = ~0u;  // blocks

struct Access {
  Moment moment;
  unsigned block, thread;
};
struct Byte {
  Access written, read;  // the last ones
};

constexpr size_t kPageBytes = 4096;
struct Page {
  Byte bytes[kPageBytes];
};

std::unordered_map<uintptr_t, Page*> pages;
std::vector<std::unique_ptr<Page>> memory_of_pages;
size_t pages_used;

struct Found {
  uintptr_t number;
  Page* page;
};
Found found_last[64];

Byte* watched(uintptr_t address) {
  const uintptr_t number = address / kPageBytes;
  Found& last = found_last[number % std::size(found_last)];
  if (last.page == nullptr || last.number != number) {
    Page*& page = pages[number];
    if (page == nullptr) {
      if (pages_used == memory_of_pages.size()) memory_of_pages.push_back(std::make_unique<Page>());
      page = memory_of_pages[pages_used++].get();
    }
    last = {number, page};
  }
  return &last.page->bytes[address % kPageBytes];
}

// In words for addr2line, as code knows no line of its own.
[[noreturn]] void fail_at(const char* what, const void* code) {
  Dl_info library{};
  dladdr(code, &library);
  char where[1000];
  std::snprintf(where, sizeof(where), "addr2line -Cfipe %s %#tx", library.dli_fname,
                static_cast<const char*>(code) - static_cast<const char*>(library.dli_fbase) - 1);
  fail(what, where);
}

void check(const Access& other, const Thread& self, const char* what, const void* code) {
  if (other.moment < launch.start) {
    if (!self.waited && other.moment >= launch.unfinished) {
      fail_at("an access without having waited for the kernel before, which uses the same memory", code);
    }
  } else if (other.block != self.block) {
    fail_at(what, code);
  } else if (other.thread != self.index) {
    const bool same_warp = other.thread / kWarp == self.index / kWarp;
    if (other.moment >= self.barrier && !(same_warp && other.moment < self.shuffle)) fail_at(what, code);
  }
}

void access(const void* memory, size_t bytes, bool writes, const void* code) {
  const Thread* const self = current_thread();
  if (self == nullptr || in_stacks(memory)) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
  const size_t of_page = std::min(bytes, kPageBytes - address % kPageBytes);
  if (of_page < bytes) access(static_cast<const char*>(memory) + of_page, bytes - of_page, writes, code);
  Byte* const first = watched(address);
  for (Byte* byte = first; byte < first + of_page; ++byte) {
    check(byte->written, *self, "a race with a write", code);
    if (writes) {
      check(byte->read, *self, "a race with a read", code);
      byte->written = {now, self->block, self->index};
    } else {
      const bool several = byte->read.moment >= launch.start && byte->read.block != self->block;
      byte->read = {now, several ? kSeveral : self->block, self->index};
    }
  }
}

}  // namespace

void forget(const void* memory, size_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
  for (uintptr_t at = address; at < address + bytes; ++at) *watched(at) = {};
}

// The pages keep what is in them: it is older than every launch to come.
void forget_all() {
  pages.clear();
  pages_used = 0;
  for (Found& last : found_last) last = {};
}

}  // namespace emulator

using emulator::access;
#define CODE __builtin_return_address(0)

extern "C" {
#define WATCH(bytes)                                                                      \
  void __tsan_read##bytes(void* memory) { access(memory, bytes, false, CODE); }           \
  void __tsan_write##bytes(void* memory) { access(memory, bytes, true, CODE); }           \
  void __tsan_unaligned_read##bytes(void* memory) { access(memory, bytes, false, CODE); } \
  void __tsan_unaligned_write##bytes(void* memory) { access(memory, bytes, true, CODE); }
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
// of the host's code
#define ATOMIC(bits)                                                                             \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* memory, int) {        \
    return __atomic_load_n(memory, __ATOMIC_SEQ_CST);                                            \
  }                                                                                              \
  void __tsan_atomic##bits##_store(volatile uint##bits##_t* memory, uint##bits##_t value, int) { \
    __atomic_store_n(memory, value, __ATOMIC_SEQ_CST);                                           \
  }
ATOMIC(8)
ATOMIC(32)
void __tsan_read_range(void* memory, size_t bytes) { access(memory, bytes, false, CODE); }
void __tsan_write_range(void* memory, size_t bytes) { access(memory, bytes, true, CODE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}

struct Alignment {
  const char* file;
  unsigned line, column;
};
#if !defined(__SANITIZE_ADDRESS__)  // whose own says more
[[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(const Alignment* at, void*) {
  char where[1000];
  std::snprintf(where, sizeof(where), "%s:%u", at->file, at->line);
  emulator::fail("a misaligned access", where);
}
#endif
}
