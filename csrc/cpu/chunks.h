// Copies between tensors whose positions have other numbers of channels, or lie further apart.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace drsn::cpu {

// `count` times `width` neighbouring elements.
template <class T>
void copy_chunks(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t count, int64_t width) {
  if (from_step == width && to_step == width) {
    width *= count;
    count = 1;
  }
  const auto copy = [&](auto fixed) {
    const size_t bytes = (fixed ? int64_t(fixed) : width) * sizeof(T);
    for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * to_step, from + i * from_step, bytes);
  };
  if (width == 1) return copy(std::integral_constant<int, 1>{});
  if (width == 4) return copy(std::integral_constant<int, 4>{});
  if (width == 8) return copy(std::integral_constant<int, 8>{});
  if (width == 16) return copy(std::integral_constant<int, 16>{});
  copy(std::integral_constant<int, 0>{});
}

}  // namespace drsn::cpu
