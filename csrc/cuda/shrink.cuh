// The half of shrink that gated_shrink shares.
#pragma once

#include <cuda_runtime_api.h>

#include "params.h"

namespace drsn::cuda {

// y from x and means that are there already, by an elementwise kernel.
cudaError_t shrink_from_means(const Shrink& op, cudaStream_t stream);

}  // namespace drsn::cuda
