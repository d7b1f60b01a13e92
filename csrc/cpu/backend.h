// What the CPU backend offers to its registration; the structs of params.h say what each computes.
#pragma once

#include "params.h"

namespace drsn::cpu {

void soft_threshold(const SoftThreshold& p);
void soft_threshold_backward(const SoftThresholdBackward& p);
void abs_mean(const AbsMean& p);
void abs_mean_backward(const AbsMeanBackward& p);
void shrink(const Shrink& p);
void shrink_backward(const ShrinkBackward& p);
void gated_shrink(const GatedShrink& p);
void gated_shrink_backward(const GatedShrinkBackward& p);
void batch_norm_shrink(const BatchNormShrink& p);
void batch_norm_shrink_backward(const BatchNormShrinkBackward& p);
void batch_norm_relu(const BatchNormRelu& p);
void batch_norm_relu_backward(const BatchNormReluBackward& p);
void batch_norm_relu_conv(const BatchNormReluConv& p);
void batch_norm_relu_conv_backward(const BatchNormReluConvBackward& p);
void residual_unit(const ResidualUnit& p);
void convert(const Conversions& p);

}  // namespace drsn::cpu
