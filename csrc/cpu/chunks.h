// Copies between tensors whose positions have other numbers of channels, or lie further apart.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace drsn::cpu {

// `count` times `width` neighbouring elements; kWidth where that is known, else 0.
template <class T, size_t kWidth>
void copy_chunks_of(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t count, int64_t width) {
  const size_t bytes = (kWidth > 0 ? kWidth : size_t(width)) * sizeof(T);
  for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * to_step, from + i * from_step, bytes);
}

// The same with the widths up to kMost - 1 known: a memcpy of unknown length is a function call.
template <class T, size_t... kWidths>
void copy_chunks_of(std::index_sequence<kWidths...>, const T* from, int64_t from_step, T* to, int64_t to_step,
                    int64_t count, int64_t width) {
  using Copy = void (*)(const T*, int64_t, T*, int64_t, int64_t, int64_t);
  static constexpr Copy kCopies[] = {copy_chunks_of<T, kWidths>...};
  kCopies[width < int64_t(sizeof...(kWidths)) ? width : 0](from, from_step, to, to_step, count, width);
}

template <class T>
void copy_chunks(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t count, int64_t width) {
  if (from_step == width && to_step == width) {
    width *= count;
    count = 1;
  }
  constexpr size_t kMost = 17;
  copy_chunks_of(std::make_index_sequence<kMost>{}, from, from_step, to, to_step, count, width);
}

}  // namespace drsn::cpu
