// The inner loops, compiled once for each instruction set and chosen when the library is first used.
#pragma once

#include <cstdint>
#include <type_traits>

namespace drsn::cpu {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
using accumulator_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Planes of the code, at a byte boundary; null where a plane is absent.
struct Planes {
  uint8_t* negative = nullptr;
  uint8_t* nonzero = nullptr;
  uint8_t* active = nullptr;
};

// The same to read, from bit `offset` of each plane on.
struct Bits {
  const uint8_t* negative;
  const uint8_t* nonzero;
  const uint8_t* active;
  int64_t offset = 0;
};

// A number for every element, or, where it does not vary, one for all. Null: 0.
template <class A>
struct Values {
  const A* data = nullptr;
  bool vary = false;
};

template <class T>
struct Kernels {
  using A = accumulator_t<T>;
  double (*abs_sum)(const T* x, int64_t n);
  void (*abs_add)(const T* x, A* sums, int64_t n);
  void (*sign_code)(const T* x, Planes code, int64_t n);
  // y = soft_threshold(x, max(tau, 0)) + residual
  void (*shrink)(const T* x, Values<A> tau, const T* residual, T* y, Planes code, int64_t n);
  // The sum, or sums[i] +=, of active * sign * g.
  double (*signed_sum)(const T* g, Bits code, int64_t n);
  void (*signed_add)(const T* g, Bits code, A* sums, int64_t n);
  // out = passes * g + active * sign * w + nonzero * sign * v; in a code without kNonzero the open elements pass too.
  void (*combine)(const T* g, Bits code, Values<A> w, Values<A> v, T* out, int64_t n);
  void (*widen)(const T* from, A* to, int64_t n);
  void (*narrow)(const A* from, T* to, int64_t n);
};

template <class T>
const Kernels<T>& kernels();

const char* simd_level();

}  // namespace drsn::cpu
