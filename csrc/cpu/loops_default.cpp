// The loops for any x86-64 or arm64 processor.
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define DRSN_SIMD simd_default
#include "loops_impl.h"
