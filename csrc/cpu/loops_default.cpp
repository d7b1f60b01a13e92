// The loops for any x86-64 processor, or with NEON for any of arm64.
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define DRSN_SIMD simd_default
#include "loops_impl.h"
