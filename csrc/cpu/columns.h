// Walks over lines whose numbers repeat, and sums per column. Part of loops_impl.h.
//
// A line is walked in runs of elements, each at the place that the caller's body gives it. Its numbers (thresholds,
// scales, ...) are arrays that repeat with a `period`: element i of a run has data[i % period]. In channels_last the
// period is that of period.h, and the arrays go on for a vector beyond it; for a row it is 1, and one number serves
// all. numbers(column) makes a struct of their vectors with of(column, data), once for all elements that are walked
// with it.
//
// Sums are kept per column of the period: element i of a run is added to column i % period, in the order of the runs
// and of their elements, by kAdditions in the accumulator's type, then in double. So they have the same bits for
// every length of a vector. A row has 32 columns, which total() adds up after each block.

constexpr int kPartialSums = 32;
constexpr int64_t kAdditions = 128;
constexpr int64_t kBlock = kPartialSums * kAdditions;  // of a row

template <class T>
DRSN_INLINE vector_t<T> splat(accumulator_t<T> a) {
  return vector_t<T>{} + a;
}

// A bit for each of the first `count` elements of a vector.
template <class T>
DRSN_INLINE bits_t<T> inside(int64_t count) {
  return count >= kLanes<T> ? bits_t<T>(-1) : bits_t<T>((1u << count) - 1);
}

DRSN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
DRSN_INLINE int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

// A vector's place in the period; kOne: one number serves all.
template <class T, bool kOne>
struct Column {
  int64_t at, count;
};
template <class T, bool kOne>
DRSN_INLINE vector_t<T> of(Column<T, kOne> column, const accumulator_t<T>* data) {
  return kOne ? splat<T>(*data) : load(data + column.at, column.count);
}

// Calls body(i, count) for each vector of elements; only the last count may be below the length of a vector.
template <class T, class Body>
DRSN_INLINE void for_each_vector(int64_t n, const Body& body) {
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + kLanes<T> <= n; i += kLanes<T>) body(i, int64_t(kLanes<T>));
  if (i < n) body(i, n - i);
}

// Calls body(run, with, i, count) for each vector of elements of each run, with = numbers(column).
template <class T, class Numbers, class Body>
DRSN_INLINE void for_each_vector(int64_t period, int64_t runs, int64_t n, const Numbers& numbers, const Body& body) {
  constexpr int64_t kStep = kLanes<T>;
  if (period == 1) {
    const auto with = numbers(Column<T, true>{0, kStep});
    for (int64_t r = 0; r < runs; ++r)
      for_each_vector<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA { body(r, with, i, count); });
  } else if (period == kPartialSums) {
    decltype(numbers(Column<T, false>{})) with[kPartialSums / kStep];
    for (int u = 0; u < kPartialSums / kStep; ++u) with[u] = numbers(Column<T, false>{u * kStep, kStep});
    for (int64_t r = 0; r < runs; ++r) {
      int64_t i = 0;
#pragma GCC unroll 2
      for (; i + kPartialSums <= n; i += kPartialSums) {
        for (int u = 0; u < kPartialSums / kStep; ++u) body(r, with[u], i + u * kStep, kStep);
      }
      for (int u = 0; i < n; i += kStep, ++u) body(r, with[u], i, n - i);
    }
  } else {
    for (int64_t r = 0; r < runs; ++r) {
      int64_t at = 0;
      for_each_vector<T>(n, [&](int64_t i, int64_t count) DRSN_LAMBDA {
        body(r, numbers(Column<T, false>{at, count}), i, count);
        at += kStep;
        if (at >= period) at -= period;
      });
    }
  }
}

// Adds elements [begin, end) of a run that belong to columns [at, at + width) of `columns` to part[s * kStride].
template <class T, int kSums, bool kOne, int64_t kStride, class Numbers, class Term>
DRSN_INLINE void add_tile(int64_t run, int64_t begin, int64_t end, int64_t columns, int64_t at, vector_t<T>* part,
                          const Numbers& numbers, const Term& term) {
  using V = vector_t<T>;
  constexpr int64_t kStep = kLanes<T>;
  constexpr int kVectors = kPartialSums / kStep;
  const int64_t width = smaller(kPartialSums, columns - at);
  decltype(numbers(Column<T, kOne>{})) with[kVectors];
  V sums[kSums][kVectors], values[kSums];
  for (int u = 0; u < kVectors; ++u) {
    with[u] = numbers(Column<T, kOne>{at + u * kStep, larger(0, width - u * kStep)});
    for (int s = 0; s < kSums; ++s) sums[s][u] = part[s * kStride + u];
  }
  int64_t i = begin + at;
  for (; width == kPartialSums && i + kPartialSums <= end; i += columns) {
    for (int u = 0; u < kVectors; ++u) {
      term(run, with[u], i + u * kStep, kStep, values);
      for (int s = 0; s < kSums; ++s) sums[s][u] += values[s];
    }
  }
  for (; i < end; i += columns) {
    const int64_t rest = smaller(width, end - i);
    for (int u = 0; u * kStep < rest; ++u) {
      term(run, with[u], i + u * kStep, smaller(kStep, rest - u * kStep), values);
      for (int s = 0; s < kSums; ++s) sums[s][u] += values[s];
    }
  }
  for (int u = 0; u < kVectors; ++u) {
    for (int s = 0; s < kSums; ++s) part[s * kStride + u] = sums[s][u];
  }
}

template <class T, int kSums, bool kOne, class Numbers, class Term>
DRSN_INLINE void add_columns(int64_t period, int64_t runs, int64_t n, double* sums, const Numbers& numbers,
                             const Term& term) {
  constexpr int64_t kStep = kLanes<T>;
  const int64_t columns = kOne ? kPartialSums : period;
  constexpr int64_t kStripe = kOne ? kPartialSums : 512;  // columns whose sums stay in the first-level cache
  const int64_t together = runs == 1 ? 1 : larger(1, kAdditions / larger(1, (n + columns - 1) / columns));
  for (int64_t first_run = 0; first_run < runs; first_run += together) {
    for (int64_t begin = 0; begin < n; begin += kAdditions * columns) {
      const int64_t end = smaller(n, begin + kAdditions * columns);
      for (int64_t first = 0; first < columns; first += kStripe) {
        const int64_t width = kOne ? kStripe : smaller(kStripe, columns - first);
        // What is walked column by column is read once: it stays in the first-level cache.
        const int64_t tile = larger(1, kBlock / width) * columns;
        vector_t<T> part[kSums * (kStripe / kStep)];
        for (int s = 0; s < kSums; ++s) {
          for (int64_t j = 0; j < (width + kPartialSums - 1) / kPartialSums * kPartialSums; j += kStep)
            part[s * (kStripe / kStep) + j / kStep] = vector_t<T>{};
        }
        for (int64_t run = first_run; run < smaller(runs, first_run + together); ++run) {
          for (int64_t at = begin; at < end; at += tile) {
            for (int64_t j = 0; j < width; j += kPartialSums)
              add_tile<T, kSums, kOne, kStripe / kStep>(run, at, smaller(end, at + tile), columns, first + j,
                                                        part + j / kStep, numbers, term);
          }
        }
        for (int s = 0; s < kSums; ++s) {
          const vector_t<T>* of_sum = part + s * (kStripe / kStep);
          if constexpr (kOne) {
            sums[s] += total<T>(of_sum);
          } else {
            accumulator_t<T> values[kStripe];
            for (int64_t u = 0; u * kStep < width; ++u) store(values + u * kStep, of_sum[u], kStep);
            for (int64_t j = 0; j < width; ++j) sums[s * columns + first + j] += double(values[j]);
          }
        }
      }
    }
  }
}

// Adds the terms of the elements of all runs to kSums sums of each column, sums[s * period + column]. term(run, with,
// i, count, values) fills in kSums vectors for elements [i, i + count), 0 past them.
template <class T, int kSums, class Numbers, class Term>
DRSN_INLINE void add_terms(int64_t period, int64_t runs, int64_t n, double* sums, const Numbers& numbers,
                           const Term& term) {
  if (period == 1) return add_columns<T, kSums, true>(period, runs, n, sums, numbers, term);
  add_columns<T, kSums, false>(period, runs, n, sums, numbers, term);
}

// The same of one row whose term(i, count, values) needs no numbers.
template <class T, int kSums, class Term>
DRSN_INLINE void add_terms(int64_t n, double* sums, const Term& term) {
  struct None {};
  add_terms<T, kSums>(
      1, 1, n, sums, [](auto) DRSN_LAMBDA { return None{}; },
      [&](int64_t, None, int64_t i, int64_t count, vector_t<T>* values) DRSN_LAMBDA { term(i, count, values); });
}
