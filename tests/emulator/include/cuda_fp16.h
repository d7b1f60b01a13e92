// Stands in for CUDA's header of this name: PyTorch's type with CUDA's names.
#pragma once

#include <torch/headeronly/util/Half.h>

using __half = c10::Half;
inline float __half2float(__half v) { return v; }
inline __half __float2half_rn(float v) { return v; }
