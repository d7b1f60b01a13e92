// Refuses tensors that share memory where an operator would read what it has written already.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "torch_api.h"

namespace drsn {

// kReadsElement: each element is read just before the same element of the output is written, so that the tensor may be
// the output itself.
enum class Access { kReads, kReadsElement, kWrites };

struct Argument {
  const char* name;
  const Tensor* tensor;  // or null: not given
  Access access;

  Argument(const char* name, const Tensor& t, Access access) : name(name), tensor(&t), access(access) {}
  Argument(const char* name, const std::optional<Tensor>& t, Access access)
      : name(name), tensor(t ? &*t : nullptr), access(access) {}
};

// The bytes from a tensor's first element to its last.
struct Span {
  uintptr_t begin = 0, end = 0;

  bool meets(const Span& other) const { return begin < other.end && other.begin < end; }
  bool holds(const Span& other) const { return begin <= other.begin && other.end <= end; }
};

inline Span span_of(const Tensor& t) {
  const auto begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  if (t.is_contiguous()) return {begin, begin + uintptr_t(t.numel()) * t.element_size()};
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t last = 0;
  for (size_t axis = 0; axis < sizes.size(); ++axis) {
    if (sizes[axis] == 0) return {};
    last += (sizes[axis] - 1) * strides[axis];
  }
  return {begin, begin + uintptr_t(last + 1) * t.element_size()};
}

// The elements of a tensor as axes (bytes from one element to the next, number of elements), largest step first.
class Elements {
 public:
  explicit Elements(const Tensor& t) : begin_(span_of(t).begin), item_(t.element_size()) {
    const auto sizes = t.sizes(), strides = t.strides();
    for (size_t axis = 0; axis < sizes.size(); ++axis) {
      if (sizes[axis] > 1 && strides[axis] > 0) axes_.emplace_back(strides[axis] * item_, sizes[axis]);
    }
    std::sort(axes_.rbegin(), axes_.rend());
  }

  // Calls visit(span) for spans without gaps that together hold all elements, until it returns true.
  template <class Visit>
  bool any(const Visit& visit) const {
    return any(begin_, 0, [](const Span&) { return true; }, visit);
  }

  // True if an element lies in `other`.
  bool meet(const Span& other) const {
    return any(
        begin_, 0, [&](const Span& span) { return span.meets(other) && !other.holds(span); },
        [&](const Span& span) { return span.meets(other); });
  }

 private:
  // Splits a span with gaps further where open(span) is true.
  template <class Open, class Visit>
  bool any(uintptr_t begin, size_t axis, const Open& open, const Visit& visit) const {
    uintptr_t bytes = item_, elements = item_;
    for (size_t i = axis; i < axes_.size(); ++i) {
      bytes += axes_[i].first * (axes_[i].second - 1);
      elements *= axes_[i].second;
    }
    const Span all{begin, begin + bytes};
    if (elements >= bytes || !open(all)) return visit(all);
    for (uintptr_t i = 0; i < axes_[axis].second; ++i) {
      if (any(begin + i * axes_[axis].first, axis + 1, open, visit)) return true;
    }
    return false;
  }

  uintptr_t begin_, item_;
  std::vector<std::pair<uintptr_t, uintptr_t>> axes_;
};

inline bool share_memory(const Tensor& a, const Tensor& b) {
  const Elements others(b);
  return Elements(a).any([&](const Span& span) { return others.meet(span); });
}

inline bool is_same_place(const Tensor& a, const Tensor& b) {
  if (a.const_data_ptr() != b.const_data_ptr() || a.scalar_type() != b.scalar_type() || a.dim() != b.dim())
    return false;
  for (int64_t axis = 0; axis < a.dim(); ++axis) {
    if (a.size(axis) != b.size(axis) || (a.size(axis) > 1 && a.stride(axis) != b.stride(axis))) return false;
  }
  return true;
}

[[noreturn]] inline void refuse_overlap(const char* name, const char* how) {
  throw std::runtime_error(std::string(name) + ": unsupported operation: " + how +
                           ". Please clone() the tensor before performing the operation.");
}

// Refuses what PyTorch's own in-place operators refuse, in their words, before anything is written.
inline void check_overlap(std::initializer_list<Argument> arguments) {
  constexpr size_t kMost = 16;
  Span spans[kMost];
  size_t count = 0;
  for (const Argument& argument : arguments) {
    const size_t mine = count++;
    if (!argument.tensor) continue;
    spans[mine] = span_of(*argument.tensor);
    if (argument.access == Access::kWrites && spans[mine].end > spans[mine].begin) {
      for (int64_t axis = 0; axis < argument.tensor->dim(); ++axis) {
        if (argument.tensor->size(axis) > 1 && argument.tensor->stride(axis) == 0)
          refuse_overlap(argument.name,
                         "more than one element of the written-to tensor refers to a single memory location");
      }
    }
    for (size_t other = 0; other < mine; ++other) {
      const Argument& before = arguments.begin()[other];
      if (!spans[mine].meets(spans[other])) continue;
      const bool writes = argument.access == Access::kWrites, wrote = before.access == Access::kWrites;
      if (!writes && !wrote) continue;
      const Argument& blamed = writes && !wrote ? before : argument;
      if (blamed.access == Access::kReadsElement && is_same_place(*argument.tensor, *before.tensor)) continue;
      if (share_memory(*argument.tensor, *before.tensor))
        refuse_overlap(blamed.name,
                       "some elements of the input tensor and the written-to tensor refer to a single memory location");
    }
  }
}

}  // namespace drsn
