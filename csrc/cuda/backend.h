// What the CUDA backend offers. Each call only enqueues work on `stream`: it allocates nothing, waits for nothing and
// can be captured in a graph.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "params.h"

namespace drsn::cuda {

// The bytes of scratch memory that the call of the same name needs: aligned to 16 bytes, of any content. Ask with the
// call's sizes and with the same pointers null.
int64_t soft_threshold_backward_workspace(const SoftThresholdBackward& op);
int64_t abs_mean_workspace(const AbsMean& op);
int64_t shrink_workspace(const Shrink& op);
int64_t shrink_backward_workspace(const ShrinkBackward& op);
int64_t gated_shrink_workspace(const GatedShrink& op);
int64_t gated_shrink_backward_workspace(const GatedShrinkBackward& op);
int64_t batch_norm_shrink_workspace(const BatchNormShrink& op);
int64_t batch_norm_shrink_backward_workspace(const BatchNormShrinkBackward& op);
int64_t batch_norm_relu_workspace(const BatchNormRelu& op);
int64_t batch_norm_relu_backward_workspace(const BatchNormReluBackward& op);

cudaError_t soft_threshold(const SoftThreshold& op, cudaStream_t stream);
cudaError_t soft_threshold_backward(const SoftThresholdBackward& op, void* workspace, cudaStream_t stream);
cudaError_t abs_mean(const AbsMean& op, void* workspace, cudaStream_t stream);
cudaError_t abs_mean_backward(const AbsMeanBackward& op, cudaStream_t stream);
cudaError_t shrink(const Shrink& op, void* workspace, cudaStream_t stream);
cudaError_t shrink_backward(const ShrinkBackward& op, void* workspace, cudaStream_t stream);
cudaError_t gated_shrink(const GatedShrink& op, void* workspace, cudaStream_t stream);
cudaError_t gated_shrink_backward(const GatedShrinkBackward& op, void* workspace, cudaStream_t stream);
cudaError_t batch_norm_shrink(const BatchNormShrink& op, void* workspace, cudaStream_t stream);
cudaError_t batch_norm_shrink_backward(const BatchNormShrinkBackward& op, void* workspace, cudaStream_t stream);
cudaError_t batch_norm_relu(const BatchNormRelu& op, void* workspace, cudaStream_t stream);
cudaError_t batch_norm_relu_backward(const BatchNormReluBackward& op, void* workspace, cudaStream_t stream);
cudaError_t convert(const Conversions& op, cudaStream_t stream);

}  // namespace drsn::cuda
