// LibTorch's stable ABI, and the few things that the operators need of tensors beyond it.
#pragma once

// One build serves every PyTorch from 2.11 on. A define of the sources, not a compiler flag: pybind11's headers that
// PyTorch 2.11 and 2.12 ship refuse the flag.
#ifdef TORCH_FEATURE_VERSION
#error "include torch_api.h before any header of PyTorch: they would serve the installed version alone"
#endif
#define TORCH_TARGET_VERSION 0x020b000000000000

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "params.h"

// Weak, since PyTorch has it from 2.13 on: what the C call that failed last had to say.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace drsn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

inline void check(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

inline Shape shape_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Shape(sizes.begin(), sizes.end());
}

// The axes of a tensor of so many axes in the order of memory: (0, 1, 2, ...), or (0, 2, ..., 1) where channels_last.
inline int memory_axis(int64_t position, int64_t axes, bool channels_last) {
  if (!channels_last || position == 0) return int(position);
  return position == axes - 1 ? 1 : int(position + 1);
}

inline Shape strides_for(const Shape& shape, bool channels_last) {
  const auto axes = int64_t(shape.size());
  Shape strides(shape.size());
  int64_t stride = 1;
  for (int64_t p = axes - 1; p >= 0; --p) {
    const int axis = memory_axis(p, axes, channels_last);
    strides[axis] = stride;
    stride *= shape[axis] > 0 ? shape[axis] : 1;
  }
  return strides;
}

[[noreturn]] inline void fail_to_allocate(const Shape& shape, bool cuda) {
  const char* what = torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : "";
  const std::string said(what ? what : "");
  const bool memory =
      said.empty() || said.find("out of memory") != said.npos || said.find("allocate memory") != said.npos;
  std::string message(!memory ? "no tensor" : cuda ? "CUDA out of memory" : "out of memory");
  message += ": drsn_ops asked PyTorch for a tensor of shape (";
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (axis > 0) message += ", ";
    message += std::to_string(shape[axis]);
  }
  message += ")";
  if (!said.empty()) message += ". " + said;
  throw std::runtime_error(message);
}

// The C shim: torch::stable::empty_like and new_empty go through the dispatcher and cost a microsecond more.
inline Tensor empty(const Shape& shape, ScalarType dtype, const Tensor& like, bool channels_last = false) {
  const Shape strides = strides_for(shape, channels_last);
  const auto device = like.device();
  AtenTensorHandle handle;
  if (aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), int32_t(dtype),
                               int32_t(device.type()), device.index(), &handle) != AOTI_TORCH_SUCCESS) {
    fail_to_allocate(shape, device.is_cuda());
  }
  return Tensor(handle);
}

inline bool lies_in(const Tensor& t, bool channels_last) {
  if (!channels_last) return t.is_contiguous();
  if (t.dim() < 3) return false;
  const Shape expected = strides_for(shape_of(t), true);
  for (int64_t axis = 0; axis < t.dim(); ++axis) {
    if (t.size(axis) > 1 && t.stride(axis) != expected[axis]) return false;
  }
  return true;
}

// The layout that the operators keep; a tensor that lies in neither is copied to contiguous memory.
inline bool is_channels_last(const Tensor& t) { return !t.is_contiguous() && lies_in(t, true); }

inline Tensor laid_out(const Tensor& t, bool channels_last) {
  if (lies_in(t, channels_last)) return t;
  Tensor copy = empty(shape_of(t), t.scalar_type(), t, channels_last);
  torch::stable::copy_(copy, t);
  return copy;
}

inline DType dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Half:
      return DType::kHalf;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Float:
      return DType::kFloat;
    case ScalarType::Double:
      return DType::kDouble;
    case ScalarType::ComplexFloat:
      return DType::kComplexFloat;
    case ScalarType::ComplexDouble:
      return DType::kComplexDouble;
    default:
      throw std::invalid_argument(
          "expected float16, bfloat16, float32, float64 or, for soft_threshold, complex64 or complex128");
  }
}

inline ScalarType accumulator_of(ScalarType type) {
  return accumulates_in_double(dtype_of(type)) ? ScalarType::Double : ScalarType::Float;
}

inline const void* data(const Tensor& t) { return t.const_data_ptr(); }
inline const void* data(const std::optional<Tensor>& t) { return t ? t->const_data_ptr() : nullptr; }
inline uint8_t* bytes(const Tensor& t) { return static_cast<uint8_t*>(t.mutable_data_ptr()); }

}  // namespace drsn
