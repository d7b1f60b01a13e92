// Vectors of 64 bytes in AVX-512: sixteen floats or eight doubles. Comparisons give bits, and bits select the elements
// to load and store at the end of a row. Part of loops_impl.h, with the names of vectors.h.

template <class A>
struct Lanes {
  typedef __m512 Vector;
};
template <>
struct Lanes<double> {
  typedef __m512d Vector;
};
template <class T>
using vector_t = typename Lanes<accumulator_t<T>>::Vector;
template <class T>
constexpr int kLanes = std::is_same_v<T, double> ? 8 : 16;
template <class T>
using bits_t = std::conditional_t<std::is_same_v<T, double>, uint8_t, uint16_t>;

DRSN_INLINE __m512 widen_bfloat16(__m256i v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
DRSN_INLINE __m256i narrow_bfloat16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  // To nearest, ties to even. A NaN is only cut off: rounding up could make it a number.
  const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounding = _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_mask_add_epi32(bits, _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), bits, rounding);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
DRSN_INLINE __m256i narrow_half(__m512 v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }

// A bit for each of the first `count` elements.
DRSN_INLINE unsigned first(int64_t count) { return (1u << count) - 1; }

DRSN_INLINE __m512 load(const float* p, int64_t count) {
  return count >= 16 ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(first(count), p);
}
DRSN_INLINE __m512d load(const double* p, int64_t count) {
  return count >= 8 ? _mm512_loadu_pd(p) : _mm512_maskz_loadu_pd(first(count), p);
}
template <class T>
DRSN_INLINE __m256i load_words(const T* p, int64_t count) {
  return count >= 16 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                     : _mm256_maskz_loadu_epi16(first(count), p);
}
DRSN_INLINE __m512 load(const BFloat16* p, int64_t count) { return widen_bfloat16(load_words(p, count)); }
DRSN_INLINE __m512 load(const Half* p, int64_t count) { return _mm512_cvtph_ps(load_words(p, count)); }

DRSN_INLINE void store(float* p, __m512 v, int64_t count) {
  count >= 16 ? _mm512_storeu_ps(p, v) : _mm512_mask_storeu_ps(p, first(count), v);
}
DRSN_INLINE void store(double* p, __m512d v, int64_t count) {
  count >= 8 ? _mm512_storeu_pd(p, v) : _mm512_mask_storeu_pd(p, first(count), v);
}
template <class T>
DRSN_INLINE void store_words(T* p, __m256i v, int64_t count) {
  count >= 16 ? _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v) : _mm256_mask_storeu_epi16(p, first(count), v);
}
DRSN_INLINE void store(BFloat16* p, __m512 v, int64_t count) { store_words(p, narrow_bfloat16(v), count); }
DRSN_INLINE void store(Half* p, __m512 v, int64_t count) { store_words(p, narrow_half(v), count); }

// Stores past the caches, from an address that is a multiple of the vector's bytes.
DRSN_INLINE void stream(float* p, __m512 v) { _mm512_stream_ps(p, v); }
DRSN_INLINE void stream(double* p, __m512d v) { _mm512_stream_pd(p, v); }
DRSN_INLINE void stream_words(void* p, __m256i v) { _mm256_stream_si256(static_cast<__m256i*>(p), v); }
DRSN_INLINE void stream(BFloat16* p, __m512 v) { stream_words(p, narrow_bfloat16(v)); }
DRSN_INLINE void stream(Half* p, __m512 v) { stream_words(p, narrow_half(v)); }

DRSN_INLINE uint16_t less(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
DRSN_INLINE uint8_t less(__m512d a, __m512d b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
DRSN_INLINE uint16_t at_most(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
DRSN_INLINE uint8_t at_most(__m512d a, __m512d b) { return _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ); }
DRSN_INLINE __m512 keep(uint16_t bits, __m512 v) { return _mm512_maskz_mov_ps(bits, v); }
DRSN_INLINE __m512d keep(uint8_t bits, __m512d v) { return _mm512_maskz_mov_pd(bits, v); }
DRSN_INLINE __m512 negate(uint16_t bits, __m512 v) { return _mm512_mask_xor_ps(v, bits, v, _mm512_set1_ps(-0.0f)); }
DRSN_INLINE __m512d negate(uint8_t bits, __m512d v) { return _mm512_mask_xor_pd(v, bits, v, _mm512_set1_pd(-0.0)); }

DRSN_INLINE __m512 multiply_add(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
DRSN_INLINE __m512 repeat(const float* p) { return _mm512_set1_ps(*p); }
DRSN_INLINE __m512 permute(__m512 v, const int32_t* from) { return _mm512_permutexvar_ps(_mm512_loadu_si512(from), v); }

template <class T>
DRSN_INLINE vector_t<T> magnitude_of(vector_t<T> x) {
  if constexpr (kLanes<T> == 8)
    return _mm512_abs_pd(x);
  else
    return _mm512_abs_ps(x);
}
template <class T>
DRSN_INLINE vector_t<T> with_sign(vector_t<T> magnitude, vector_t<T> sign) {
  if constexpr (kLanes<T> == 8)
    return _mm512_or_pd(magnitude, _mm512_and_pd(sign, _mm512_set1_pd(-0.0)));
  else
    return _mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
}
// max(x, 0) that keeps NaN: of two operands the instruction returns the second where either is NaN.
template <class T>
DRSN_INLINE vector_t<T> positive_part(vector_t<T> x) {
  if constexpr (kLanes<T> == 8)
    return _mm512_max_pd(_mm512_setzero_pd(), x);
  else
    return _mm512_max_ps(_mm512_setzero_ps(), x);
}

// The sum of 32 partial sums, in the order of vectors.h.
template <class T>
DRSN_INLINE double total(const vector_t<T>* part) {
  if constexpr (kLanes<T> == 8) {
    const __m512d all = (part[0] + part[1]) + (part[2] + part[3]);
    const __m256d four = _mm512_castpd512_pd256(all) + _mm512_extractf64x4_pd(all, 1);
    return (four[0] + four[2]) + (four[1] + four[3]);
  } else {
    const __m256 low = _mm512_castps512_ps256(part[0]) + _mm512_extractf32x8_ps(part[0], 1);
    const __m256 all = low + (_mm512_castps512_ps256(part[1]) + _mm512_extractf32x8_ps(part[1], 1));
    const __m128 four = _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1);
    return double((four[0] + four[2]) + (four[1] + four[3]));
  }
}
