// Which instruction set's loops run: the best that the processor has, or a lower one that DRSN_OPS_SIMD names.
#include "loops.h"

#include <cstdlib>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace drsn::cpu {

#define DRSN_DECLARE(simd)                                                   \
  namespace simd {                                                           \
  template <class T>                                                         \
  const Loops<T>& table();                                                   \
  void multiply(const Product<float>& p);                                    \
  void multiply(const Product<double>& p);                                   \
  void convolve(const Taps& taps, const float* bias, float* out, int64_t n); \
  void correlate(const Taps& taps, const float* g, int64_t n, double* sums); \
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

#if defined(__x86_64__)
#define DRSN_CALL(call) return level() == 2 ? simd_avx512::call : level() == 1 ? simd_avx2::call : simd_default::call
#else
#define DRSN_CALL(call) return simd_default::call
#endif

template <class T>
const Loops<T>& loops() {
  DRSN_CALL(table<T>());
}
template const Loops<float>& loops();
template const Loops<double>& loops();
template const Loops<Half>& loops();
template const Loops<BFloat16>& loops();

template <class A>
void multiply(const Product<A>& p) {
  DRSN_CALL(multiply(p));
}
template void multiply(const Product<float>& p);
template void multiply(const Product<double>& p);

void convolve(const Taps& taps, const float* bias, float* out, int64_t n) { DRSN_CALL(convolve(taps, bias, out, n)); }

void correlate(const Taps& taps, const float* g, int64_t n, double* sums) { DRSN_CALL(correlate(taps, g, n, sums)); }

}  // namespace drsn::cpu
