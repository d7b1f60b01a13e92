// What all vectors of eight numbers share: their length, and how they are read and written at the end of a row. Part of
// loops_impl.h, behind load and store of whole vectors.

// Elements in a vector, and as many bits.
template <class T>
constexpr int kLanes = 8;
template <class T>
using bits_t = uint8_t;

// Stores past the caches from an address that is a multiple of the vector's bytes; in float with AVX2 alone.
template <class T>
DRSN_INLINE void stream(T* p, vector_t<T> v) {
  store(p, v);
}
#if defined(DRSN_SIMD_AVX2)
DRSN_INLINE void stream(float* p, vector_t<float> v) { _mm256_stream_ps(p, (__m256)v); }
#endif

template <class T>
DRSN_INLINE vector_t<T> load(const T* p, int64_t count) {
  if (count >= 8) return load(p);
  T buffer[8] = {};
  for (int i = 0; i < 7; ++i) {
    if (i < count) buffer[i] = p[i];  // unrolled: a memcpy of unknown length is a function call
  }
  return load(buffer);
}

template <class T>
DRSN_INLINE void store(T* p, vector_t<T> v, int64_t count) {
  if (count >= 8) return store(p, v);
  T buffer[8];
  store(buffer, v);
  for (int i = 0; i < 7; ++i) {
    if (i < count) p[i] = buffer[i];
  }
}
