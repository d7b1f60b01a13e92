// Which instruction set's loops run: the best that the processor has, or a lower one that DRSN_OPS_SIMD names.
#include "loops.h"

#include <cstdlib>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace drsn::cpu {

#define DRSN_DECLARE(simd)                 \
  namespace simd {                         \
  template <class T>                       \
  const Loops<T>& table();                 \
  void multiply(const Product<float>& p);  \
  void multiply(const Product<double>& p); \
  }
DRSN_DECLARE(simd_default)
DRSN_DECLARE(simd_avx2)
DRSN_DECLARE(simd_avx512)

namespace {

const char* const kLevels[] = {"default", "avx2", "avx512"};

int choose() {
  int level = 0;
#if defined(__x86_64__)
  const auto avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const auto avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  level = avx2 ? (avx512 ? 2 : 1) : 0;
#endif
  const char* wanted = std::getenv("DRSN_OPS_SIMD");
  for (int lower = 0; wanted && lower < level; ++lower) {
    if (!std::strcmp(wanted, kLevels[lower])) level = lower;
  }
  return level;
}

int level() {
  static const int chosen = choose();
  return chosen;
}

}  // namespace

void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

const char* simd_level() { return kLevels[level()]; }

template <class T>
const Loops<T>& loops() {
#if defined(__x86_64__)
  if (level() == 2) return simd_avx512::table<T>();
  if (level() == 1) return simd_avx2::table<T>();
#endif
  return simd_default::table<T>();
}
template const Loops<float>& loops();
template const Loops<double>& loops();
template const Loops<Half>& loops();
template const Loops<BFloat16>& loops();

template <class A>
void multiply(const Product<A>& p) {
#if defined(__x86_64__)
  if (level() == 2) return simd_avx512::multiply(p);
  if (level() == 1) return simd_avx2::multiply(p);
#endif
  simd_default::multiply(p);
}
template void multiply(const Product<float>& p);
template void multiply(const Product<double>& p);

}  // namespace drsn::cpu
