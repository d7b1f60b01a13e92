// LibTorch's stable ABI, and what the operators need of tensors beyond it.
#pragma once

// One build serves every PyTorch from 2.11 on. Not a compiler flag: the pybind11 headers of PyTorch 2.11 and 2.12
// refuse it.
#ifdef TORCH_FEATURE_VERSION
#error "include torch_api.h before any header of PyTorch: they would serve the installed version alone"
#endif
#ifndef TORCH_TARGET_VERSION
#define TORCH_TARGET_VERSION 0x020b000000000000
#endif

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "params.h"

#ifndef DRSN_NAMESPACE
#define DRSN_NAMESPACE drsn_ops  // of the operators: torch.ops.drsn_ops
#endif

// The message of the C call that failed last. Weak: PyTorch has it from 2.13 on.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace drsn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

inline Shape shape_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Shape(sizes.begin(), sizes.end());
}

inline bool has_shape(const Tensor& t, const Shape& shape) {
  const auto sizes = t.sizes();
  return std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end());
}

// Tensor::device, which compares with every kind of device in turn, is slower.
inline int32_t device_type(const Tensor& t) {
  int32_t type;
  if (aoti_torch_get_device_type(t.get(), &type) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error("drsn_ops: PyTorch does not tell the device of a tensor");
  return type;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return device_type(a) == device_type(b) && a.get_device_index() == b.get_device_index();
}

// Shapes, types and tensors as Python prints them, for error messages.
inline std::string words(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

inline std::string words(ScalarType type) {
  switch (type) {
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(type);
  }
}

inline std::string device_words(const Tensor& t) {
  if (t.is_cpu()) return "the CPU";
  return (t.is_cuda() ? "CUDA device " : "another device, ") + std::to_string(t.get_device_index());
}

inline std::string words(ScalarType type, const std::string& shape, const Tensor& on) {
  return words(type) + " of shape " + shape + " on " + device_words(on);
}

inline std::string words(const Tensor& t) { return words(t.scalar_type(), words(shape_of(t)), t); }

[[noreturn]] inline void refuse(const char* name, const std::string& got, const std::string& expected) {
  throw std::invalid_argument(std::string(name) + ": got " + got + ", expected " + expected);
}

// The axis at a position in the order of memory: (0, 1, 2, ...), or (0, 2, ..., 1) where channels_last.
inline int memory_axis(int64_t position, int64_t axes, bool channels_last) {
  if (!channels_last || position == 0) return int(position);
  return position == axes - 1 ? 1 : int(position + 1);
}

inline Shape strides_for(const Shape& shape, bool channels_last) {
  const auto axes = int64_t(shape.size());
  Shape strides(shape.size());
  uint64_t stride = 1;  // wraps if a caller's shape is too large: PyTorch refuses to allocate it
  for (int64_t p = axes - 1; p >= 0; --p) {
    const int axis = memory_axis(p, axes, channels_last);
    strides[axis] = int64_t(stride);
    stride *= shape[axis] > 0 ? uint64_t(shape[axis]) : 1;
  }
  return strides;
}

[[noreturn]] inline void fail_to_allocate(const Shape& shape, bool cuda) {
  const char* what = torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : "";
  const std::string said(what ? what : "");
  const bool memory =
      said.empty() || said.find("out of memory") != said.npos || said.find("allocate memory") != said.npos;
  std::string message(!memory ? "no tensor" : cuda ? "CUDA out of memory" : "out of memory");
  message += ": drsn_ops asked PyTorch for a tensor of shape " + words(shape);
  if (!said.empty()) message += ". " + said;
  throw std::runtime_error(message);
}

// Tests set DRSN_OPS_FILL=nan: an element that a kernel leaves unwritten is then NaN, or 255 in a mask.
inline bool fills_new_memory() {
  static const bool fills = [] {
    const char* fill = std::getenv("DRSN_OPS_FILL");
    return fill && std::string(fill) == "nan";
  }();
  return fills;
}

// The C shim: torch::stable::empty_like and new_empty go through the dispatcher and cost a microsecond more.
inline Tensor empty(const Shape& shape, ScalarType dtype, const Tensor& like, bool channels_last = false) {
  const Shape strides = strides_for(shape, channels_last);
  AtenTensorHandle handle;
  if (aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), int32_t(dtype), device_type(like),
                               like.get_device_index(), &handle) != AOTI_TORCH_SUCCESS) {
    fail_to_allocate(shape, like.is_cuda());
  }
  Tensor made(handle);
  if (fills_new_memory()) {
    // the other integers are refused later
    const double integer = dtype == ScalarType::Byte ? 255 : -1;
    torch::stable::fill_(made, dtype < ScalarType::Half ? integer : std::nan(""));
  }
  return made;
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

// The operators keep this layout and the contiguous one; any other tensor is copied to contiguous memory.
inline bool is_channels_last(const Tensor& t) { return !t.is_contiguous() && lies_in(t, true); }

inline Tensor laid_out(const Tensor& t, bool channels_last) {
  if (lies_in(t, channels_last)) return t;
  Tensor copy = empty(shape_of(t), t.scalar_type(), t, channels_last);
  torch::stable::copy_(copy, t);
  return copy;
}

// Only soft_threshold takes complex numbers.
enum class Numbers { kReal, kComplex, kBoth };

inline DType dtype_of(const char* name, ScalarType type, Numbers numbers = Numbers::kReal) {
  const bool real = numbers != Numbers::kComplex, complex = numbers != Numbers::kReal;
  if (real && type == ScalarType::Half) return DType::kHalf;
  if (real && type == ScalarType::BFloat16) return DType::kBFloat16;
  if (real && type == ScalarType::Float) return DType::kFloat;
  if (real && type == ScalarType::Double) return DType::kDouble;
  if (complex && type == ScalarType::ComplexFloat) return DType::kComplexFloat;
  if (complex && type == ScalarType::ComplexDouble) return DType::kComplexDouble;
  refuse(name, words(type),
         std::string(real ? "float16, bfloat16, float32 or float64" : "") + (real && complex ? ", or " : "") +
             (complex ? "complex64 or complex128" : ""));
}

inline ScalarType accumulator_of(ScalarType type) {
  return type == ScalarType::Double || type == ScalarType::ComplexDouble ? ScalarType::Double : ScalarType::Float;
}

// Refuses a tensor of another shape, type or device; the device is that of `like`.
inline void check_tensor(const char* name, const Tensor& t, const Shape& shape, ScalarType type, const Tensor& like) {
  if (has_shape(t, shape) && t.scalar_type() == type && same_device(t, like)) return;
  refuse(name, words(t), words(type, words(shape), like));
}

// The same; returns the tensor in the layout that the kernels read.
inline Tensor checked(const char* name, const Tensor& t, const Shape& shape, ScalarType type, const Tensor& like,
                      bool channels_last = false) {
  check_tensor(name, t, shape, type, like);
  return laid_out(t, channels_last);
}

inline const void* data(const Tensor& t) { return t.const_data_ptr(); }
inline const void* data(const std::optional<Tensor>& t) { return t ? t->const_data_ptr() : nullptr; }
inline uint8_t* bytes(const Tensor& t) { return static_cast<uint8_t*>(t.mutable_data_ptr()); }

}  // namespace drsn
