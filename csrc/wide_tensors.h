// The parameters, running statistics and gradients of a call as the kernels want them: contiguous, of the accumulator's
// type.
#pragma once

#include "operators.h"

namespace drsn {

// Tensors that are so already are used where they lie. The others get a place in memory of the call: `widen`, before
// the kernels, copies there all that they read, and `narrow`, after them, copies back all that they wrote.
class WideTensors {
 public:
  const Tensor& like;  // a tensor of the call's type and device, which has to outlive this

  explicit WideTensors(const Tensor& like) : like(like), wide_(accumulator_of(like.scalar_type())) {}
  WideTensors(const WideTensors&) = delete;

  // Each pointer, `to`, is set at the latest by `widen`, and may not have moved until then.

  // A parameter of any real type, or none.
  void reads(const char* name, const Tensor& t, const Shape& shape, const void*& to) {
    check(name, t, shape);
    add(t, const_cast<void**>(&to), true, false);
  }
  void reads(const char* name, const Optional& t, const Shape& shape, const void*& to) {
    if (t) reads(name, *t, shape, to);
  }

  // A running statistic, or none.
  void updates(const char* name, const Optional& t, const Shape& shape, bool written, void*& to) {
    if (!t) return;
    check(name, *t, shape);
    add(*t, &to, true, written);
  }

  // Memory for the gradient of a parameter, of its type; empty where it is not wanted or there is no parameter.
  Tensor gradient(bool wanted, const Tensor& parameter, void*& to) {
    const Tensor made = empty(wanted ? shape_of(parameter) : Shape{0}, parameter.scalar_type(), like);
    if (wanted) add(made, &to, false, true);
    return made;
  }
  Tensor gradient(bool wanted, const Optional& parameter, void*& to) {
    return parameter ? gradient(wanted, *parameter, to) : empty({0}, wide_, like);
  }

  template <class Backend>
  void widen() {
    if (copied_.empty()) return;
    int64_t size = 0;
    for (const Copied& each : copied_) size += each.size();
    memory_ = empty({size}, wide_, like);
    auto* next = static_cast<char*>(memory_->mutable_data_ptr());
    for (Copied& each : copied_) {
      *each.to = each.conversion.wide = next;
      next += each.size() * memory_->element_size();
    }
    convert<Backend>(false, &Copied::read);
  }

  template <class Backend>
  void narrow() const {
    if (!copied_.empty()) convert<Backend>(true, &Copied::written);
  }

 private:
  struct Copied {
    Conversion conversion;
    void** to;
    bool read, written;

    int64_t size() const { return (conversion.rows * conversion.columns + 3) / 4 * 4; }  // starts are aligned
  };

  void check(const char* name, const Tensor& t, const Shape& shape) const {
    const ScalarType type = t.scalar_type();
    dtype_of(name, type);
    check_tensor(name, t, shape, type, like);
  }

  // t has one axis or two.
  void add(const Tensor& t, void** to, bool read, bool written) {
    void* const data = written ? t.mutable_data_ptr() : const_cast<void*>(t.const_data_ptr());
    const bool dense = t.is_contiguous();
    if (dense && t.scalar_type() == wide_) {
      *to = data;
      return;
    }
    const bool matrix = t.dim() == 2 && !dense;
    copied_.push_back({{data, nullptr, dtype_of("", t.scalar_type()), matrix ? t.size(0) : 1,
                        matrix ? t.size(1) : t.numel(), matrix ? t.stride(0) : 0, dense ? 1 : t.stride(t.dim() - 1)},
                       to,
                       read,
                       written});
  }

  template <class Backend>
  void convert(bool narrows, bool Copied::* chosen) const {
    Conversions all;
    all.accumulator = dtype_of("", wide_);
    all.narrows = narrows;
    all.count = 0;
    for (const Copied& each : copied_) {
      if (each.*chosen) all.of[all.count++] = each.conversion;
    }
    if (all.count > 0) Backend::convert(all, like);
  }

  ScalarType wide_;
  std::vector<Copied> copied_;
  Optional memory_;
};

}  // namespace drsn
