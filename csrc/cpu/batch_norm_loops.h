// The loops of BatchNorm, before a ReLU and before a shrinkage. Part of loops_impl.h.

template <class T>
void centered_sums(const T* x, const accumulator_t<T>* center, int64_t period, int64_t n, double* sums) {
  using V = vector_t<T>;
  add_terms<T, 2>(
      period, 1, n, sums, [&](auto column) DRSN_LAMBDA { return of(column, center); },
      [&](int64_t, V with, int64_t i, int64_t count, V* out) DRSN_LAMBDA {
        out[0] = keep(inside<T>(count), load(x + i, count) - with);
        out[1] = out[0] * out[0];
      });
}

template <class T>
void moments(const T* x, int64_t rows, int64_t n, double* mean, double* squares) {
  using A = accumulator_t<T>;
  for (int64_t r = 0; r < rows; ++r, x += n) {
    const int64_t block = larger(smaller(n, 64), n / 32);
    double first[2] = {}, sums[2] = {};
    const A zero = 0;
    centered_sums(x, &zero, 1, block, first);
    const A center = A(first[0] / double(block));
    centered_sums(x, &center, 1, n, sums);
    mean[r] = double(center) + sums[0] / double(n);
    squares[r] = sums[1] - sums[0] * sums[0] / double(n);
  }
}

// Calls run(line, channel) for each line of a walk, with where the numbers of its channels begin.
template <class Run>
DRSN_INLINE void for_each_line(const Walk& walk, const Run& run) {
  int64_t channel = walk.channel;
  for (int64_t line = 0; line < walk.lines; ++line) {
    run(line, channel);
    if (++channel == walk.channels) channel = 0;
  }
}

// A normalisation, in vectors.
template <class T>
struct RowAffine {
  vector_t<T> center, scale, bias;
};

// A vector of norm(x) from element i on; 0 past the end.
template <class T>
DRSN_INLINE vector_t<T> normalised(const T* x, const RowAffine<T>& affine, int64_t i, int64_t count) {
  return keep(inside<T>(count), (load(x + i, count) - affine.center) * affine.scale + affine.bias);
}

template <class T, bool kOne>
DRSN_INLINE RowAffine<T> affine_of(Column<T, kOne> column, const Affine<accumulator_t<T>>& affine, int64_t channel) {
  return {of(column, affine.center + channel), of(column, affine.scale + channel), of(column, affine.bias + channel)};
}

template <class T>
void batch_norm_relu(const T* x, Affine<accumulator_t<T>> affine, T* y, Walk walk) {
  for_each_line(walk, [&](int64_t line, int64_t channel) DRSN_LAMBDA {
    const T* from = x + line * walk.runs * walk.n;
    T* to = y + line * walk.padded_line;
    for_each_vector<T>(
        walk.period, walk.runs, walk.n, [&](auto column) DRSN_LAMBDA { return affine_of<T>(column, affine, channel); },
        [&](int64_t run, const RowAffine<T>& with, int64_t i, int64_t count) DRSN_LAMBDA {
          const vector_t<T> v = normalised<T>(from + run * walk.n, with, i, count);
          store(to + walk.padded[run] + i, positive_part<T>(v), count);
        });
  });
}

template <class T>
void norm_abs_sums(const T* x, Affine<accumulator_t<T>> affine, Walk walk, double* sums) {
  for_each_line(walk, [&](int64_t line, int64_t channel) DRSN_LAMBDA {
    add_terms<T, 1>(
        walk.period, walk.runs, walk.n, sums + line,
        [&](auto column) DRSN_LAMBDA { return affine_of<T>(column, affine, channel); },
        [&](int64_t run, const RowAffine<T>& with, int64_t i, int64_t count, vector_t<T>* out) DRSN_LAMBDA {
          out[0] = magnitude_of<T>(normalised<T>(x + (line * walk.runs + run) * walk.n, with, i, count));
        });
  });
}

// The numbers of a vector of elements, and what they make of it: x - center, and the mask of norm(x).
template <class T>
struct NormVectors {
  RowAffine<T> affine;
  vector_t<T> tau, share, at_center, slope;
};
template <class T>
struct NormVector {
  vector_t<T> centered;
  bits_t<T> negative, nonzero, active;
};

template <class T, bool kRelu>
DRSN_INLINE NormVector<T> normalise(const T* x, const RowAffine<T>& affine, vector_t<T> tau, int64_t count) {
  const vector_t<T> zero = {};
  const vector_t<T> v = normalised<T>(x, affine, 0, count);
  const bits_t<T> in = inside<T>(count);
  const vector_t<T> centered = keep(in, load(x, count) - affine.center);
  if constexpr (kRelu) return {centered, 0, 0, bits_t<T>(~at_most(v, zero) & in)};
  const vector_t<T> magnitude = magnitude_of<T>(v);
  return {centered, bits_t<T>(less(v, zero) & in), bits_t<T>(less(zero, magnitude) & in),
          bits_t<T>(less(tau, magnitude) & in)};
}

template <class T, bool kRelu>
void batch_norm_sums(const T* g, const T* x, BatchNormNumbers<accumulator_t<T>> with, Walk walk, double* sums) {
  using V = vector_t<T>;
  constexpr int kSums = kRelu ? 2 : 5;
  const V one = splat<T>(1);
  for_each_line(walk, [&](int64_t line, int64_t channel) DRSN_LAMBDA {
    const T* line_g = g + line * walk.padded_line;
    const T* line_x = x + line * walk.runs * walk.n;
    add_terms<T, kSums>(
        walk.period, walk.runs, walk.n, sums + line * kSums,
        [&](auto column) DRSN_LAMBDA {
          NormVectors<T> v{affine_of<T>(column, with.affine, channel), {}, {}, {}, {}};
          if constexpr (!kRelu) v.tau = of(column, with.tau + line);
          return v;
        },
        [&](int64_t run, const NormVectors<T>& numbers, int64_t i, int64_t count, V* out) DRSN_LAMBDA {
          const NormVector<T> v = normalise<T, kRelu>(line_x + run * walk.n + i, numbers.affine, numbers.tau, count);
          const V passed = keep(v.active, load(line_g + walk.padded[run] + i, count));
          out[0] = passed;
          out[1] = passed * v.centered;
          if constexpr (!kRelu) {
            out[2] = negate(v.negative, passed);
            out[3] = keep(v.nonzero, negate(v.negative, one));
            out[4] = keep(v.nonzero, negate(v.negative, v.centered));
          }
        });
  });
}

template <class T, bool kRelu>
void batch_norm_combine(const T* g, const T* x, BatchNormNumbers<accumulator_t<T>> with, const T* shortcut, T* dx,
                        Walk walk) {
  const bool over_batch = with.slope;  // else an x that is not finite, times 0, would make dx NaN
  for_each_line(walk, [&](int64_t line, int64_t channel) DRSN_LAMBDA {
    const T* line_g = g + line * walk.padded_line;
    for_each_vector<T>(
        walk.period, walk.runs, walk.n,
        [&](auto column) DRSN_LAMBDA {
          NormVectors<T> v{affine_of<T>(column, with.affine, channel), {}, {}, {}, {}};
          if (over_batch) {
            v.at_center = of(column, with.at_center + channel);
            v.slope = of(column, with.slope + channel);
          }
          if constexpr (!kRelu) {
            v.tau = of(column, with.tau + line);
            v.share = of(column, with.share + line);
          }
          return v;
        },
        [&](int64_t run, const NormVectors<T>& numbers, int64_t i, int64_t count) DRSN_LAMBDA {
          const int64_t at = (line * walk.runs + run) * walk.n + i;
          const NormVector<T> v = normalise<T, kRelu>(x + at, numbers.affine, numbers.tau, count);
          vector_t<T> d = keep(v.active, load(line_g + walk.padded[run] + i, count));
          if constexpr (!kRelu) d += keep(v.nonzero, negate(v.negative, numbers.share));
          d = numbers.affine.scale * d;
          if (over_batch) d += numbers.at_center + numbers.slope * v.centered;
          if (shortcut) d += load(shortcut + at, count);
          store(dx + at, d, count);
        });
  });
}

template <class T>
void norm_shrink(const T* x, Affine<accumulator_t<T>> affine, const accumulator_t<T>* tau, const T* residual, T* y,
                 Walk walk) {
  for_each_line(walk, [&](int64_t line, int64_t channel) DRSN_LAMBDA {
    for_each_vector<T>(
        walk.period, walk.runs, walk.n,
        [&](auto column) DRSN_LAMBDA {
          return NormVectors<T>{
              affine_of<T>(column, affine, channel), positive_part<T>(of(column, tau + line)), {}, {}, {}};
        },
        [&](int64_t run, const NormVectors<T>& numbers, int64_t i, int64_t count) DRSN_LAMBDA {
          const int64_t at = (line * walk.runs + run) * walk.n + i;
          const vector_t<T> v = normalised<T>(x + at, numbers.affine, 0, count);
          vector_t<T> out = with_sign<T>(positive_part<T>(magnitude_of<T>(v) - numbers.tau), v);
          if (residual) out += load(residual + at, count);
          store(y + at, out, count);
        });
  });
}
