// Vectors of eight numbers in NEON: two registers of floats or four of doubles. Part of loops_impl.h, with the names of
// vectors.h, whose vectors GCC keeps in memory where a register is shorter, and compares number by number.

template <class A>
struct Vector {
  typedef A Register __attribute__((vector_size(16)));
  typedef std::conditional_t<sizeof(A) == 4, uint32_t, uint64_t> Bits __attribute__((vector_size(16)));
  static constexpr int kLength = 16 / sizeof(A), kRegisters = 8 / kLength;
  Register part[kRegisters];
};
template <class T>
using vector_t = Vector<accumulator_t<T>>;
template <class A>
using register_bits = typename Vector<A>::Bits;

// The vector whose register r is make(r). Not a loop: GCC would unroll it too late to keep the vector in registers.
template <class A, class Make>
DRSN_INLINE Vector<A> each(const Make& make) {
  using R = typename Vector<A>::Register;
  if constexpr (Vector<A>::kRegisters == 2) {
    return {{(R)make(0), (R)make(1)}};
  } else {
    return {{(R)make(0), (R)make(1), (R)make(2), (R)make(3)}};
  }
}

template <class A>
DRSN_INLINE Vector<A> operator+(const Vector<A>& a, const Vector<A>& b) {
  return each<A>([&](int r) DRSN_LAMBDA { return a.part[r] + b.part[r]; });
}
template <class A>
DRSN_INLINE Vector<A> operator-(const Vector<A>& a, const Vector<A>& b) {
  return each<A>([&](int r) DRSN_LAMBDA { return a.part[r] - b.part[r]; });
}
template <class A>
DRSN_INLINE Vector<A> operator*(const Vector<A>& a, const Vector<A>& b) {
  return each<A>([&](int r) DRSN_LAMBDA { return a.part[r] * b.part[r]; });
}
template <class A>
DRSN_INLINE Vector<A> operator+(const Vector<A>& a, A b) {
  return each<A>([&](int r) DRSN_LAMBDA { return a.part[r] + b; });
}
template <class A>
DRSN_INLINE Vector<A>& operator+=(Vector<A>& a, const Vector<A>& b) {
  return a = a + b;
}

template <class R, class S>
DRSN_INLINE R read(const S* p) {
  R v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
// A register at a time: of all together GCC makes a copy on the stack.
template <class A>
DRSN_INLINE Vector<A> load_registers(const A* p) {
  return each<A>([&](int r) DRSN_LAMBDA { return read<typename Vector<A>::Register>(p + r * Vector<A>::kLength); });
}
template <class A>
DRSN_INLINE void store_registers(A* p, const Vector<A>& v) {
  for (int r = 0; r < Vector<A>::kRegisters; ++r) std::memcpy(p + r * Vector<A>::kLength, &v.part[r], 16);
}
DRSN_INLINE Vector<float> load(const float* p) { return load_registers(p); }
DRSN_INLINE Vector<double> load(const double* p) { return load_registers(p); }
DRSN_INLINE Vector<float> load(const BFloat16* p) {
  const uint16x8_t v = read<uint16x8_t>(p);
  return {{(float32x4_t)vshll_n_u16(vget_low_u16(v), 16), (float32x4_t)vshll_high_n_u16(v, 16)}};
}
DRSN_INLINE Vector<float> load(const Half* p) {
  const float16x8_t v = (float16x8_t)read<uint16x8_t>(p);
  return {{vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v)}};
}

DRSN_INLINE void store(float* p, const Vector<float>& v) { store_registers(p, v); }
DRSN_INLINE void store(double* p, const Vector<double>& v) { store_registers(p, v); }
DRSN_INLINE void store(BFloat16* p, const Vector<float>& v) {
  const auto rounded = each<float>([&](int r) DRSN_LAMBDA {
    const uint32x4_t bits = (uint32x4_t)v.part[r];
    // To nearest, ties to even. A NaN is only cut off: rounding up could make it a number.
    return bits + ((((bits >> 16) & 1) + 0x7fff) & (uint32x4_t)(v.part[r] == v.part[r]));
  });
  const uint16x8_t narrow = vuzp2q_u16((uint16x8_t)rounded.part[0], (uint16x8_t)rounded.part[1]);
  std::memcpy(p, &narrow, sizeof(narrow));
}
DRSN_INLINE void store(Half* p, const Vector<float>& v) {
  const float16x8_t narrow = vcvt_high_f16_f32(vcvt_f16_f32(v.part[0]), v.part[1]);
  std::memcpy(p, &narrow, sizeof(narrow));
}

// Eight comparisons as eight bits: compare(r) has those of register r.
template <class A, class Compare>
DRSN_INLINE uint8_t pack(const Compare& compare) {
  const auto c = each<A>(compare);
  uint16x8_t all;
  if constexpr (Vector<A>::kRegisters == 2) {
    all = vuzp1q_u16((uint16x8_t)c.part[0], (uint16x8_t)c.part[1]);
  } else {
    all = vuzp1q_u16((uint16x8_t)vuzp1q_u32((uint32x4_t)c.part[0], (uint32x4_t)c.part[1]),
                     (uint16x8_t)vuzp1q_u32((uint32x4_t)c.part[2], (uint32x4_t)c.part[3]));
  }
  return uint8_t(vaddvq_u16(all & uint16x8_t{1, 2, 4, 8, 16, 32, 64, 128}));
}
// All bits of the numbers in register r whose bit is set.
template <class A>
DRSN_INLINE register_bits<A> unpack(uint8_t byte, int r) {
  register_bits<A> bit = {};
  for (int i = 0; i < Vector<A>::kLength; ++i) bit[i] = 1u << (r * Vector<A>::kLength + i);
  return (register_bits<A>)(((register_bits<A>{} + byte) & bit) != 0);
}

template <class A>
DRSN_INLINE uint8_t less(const Vector<A>& a, const Vector<A>& b) {
  return pack<A>([&](int r) DRSN_LAMBDA { return a.part[r] < b.part[r]; });
}
template <class A>
DRSN_INLINE uint8_t at_most(const Vector<A>& a, const Vector<A>& b) {
  return pack<A>([&](int r) DRSN_LAMBDA { return a.part[r] <= b.part[r]; });
}

template <class A>
DRSN_INLINE register_bits<A> sign_bit() {
  return register_bits<A>{} + (sizeof(A) == 4 ? 0x80000000u : 0x8000000000000000u);
}
template <class A>
DRSN_INLINE Vector<A> keep(uint8_t bits, const Vector<A>& v) {
  return each<A>([&](int r) DRSN_LAMBDA { return (register_bits<A>)v.part[r] & unpack<A>(bits, r); });
}
template <class A>
DRSN_INLINE Vector<A> negate(uint8_t bits, const Vector<A>& v) {
  return each<A>([&](int r) DRSN_LAMBDA { return (register_bits<A>)v.part[r] ^ (unpack<A>(bits, r) & sign_bit<A>()); });
}

template <class T>
DRSN_INLINE vector_t<T> magnitude_of(const vector_t<T>& x) {
  using A = accumulator_t<T>;
  return each<A>([&](int r) DRSN_LAMBDA { return (register_bits<A>)x.part[r] & ~sign_bit<A>(); });
}
template <class T>
DRSN_INLINE vector_t<T> with_sign(const vector_t<T>& magnitude, const vector_t<T>& sign) {
  using A = accumulator_t<T>;
  return each<A>([&](int r) DRSN_LAMBDA {
    return (register_bits<A>)magnitude.part[r] | ((register_bits<A>)sign.part[r] & sign_bit<A>());
  });
}
// max(x, 0) that keeps NaN and -0.
template <class T>
DRSN_INLINE vector_t<T> positive_part(const vector_t<T>& x) {
  using A = accumulator_t<T>;
  return each<A>([&](int r) DRSN_LAMBDA {
    return (register_bits<A>)x.part[r] & ~(register_bits<A>)(x.part[r] < typename Vector<A>::Register{});
  });
}

// What a convolution of few channels is made of: nothing calls it below AVX2.
DRSN_INLINE Vector<float> repeat(const float* p) { return Vector<float>{} + *p; }
DRSN_INLINE Vector<float> multiply_add(const Vector<float>& a, const Vector<float>& b, const Vector<float>& c) {
  return a * b + c;
}
DRSN_INLINE Vector<float> permute(const Vector<float>& v, const int32_t* from) {
  float numbers[8], out[8];
  store(numbers, v);
  for (int i = 0; i < 8; ++i) out[i] = numbers[from[i]];
  return load(out);
}

// The sum of 32 partial sums, in the order of vectors.h.
template <class T>
DRSN_INLINE double total(const vector_t<T>* part) {
  const vector_t<T> all = (part[0] + part[1]) + (part[2] + part[3]);
  if constexpr (vector_t<T>::kRegisters == 2) {
    const auto four = all.part[0] + all.part[1];
    return double((four[0] + four[2]) + (four[1] + four[3]));
  } else {
    const auto two = (all.part[0] + all.part[2]) + (all.part[1] + all.part[3]);
    return two[0] + two[1];
  }
}

#include "vectors_tail.h"
