// shrink and its backward on whole rows: each row, or a few short ones, are summed and then written, while they are in
// the first-level cache. Part of loops_impl.h.

// Rows that are summed before the first is written, which would wait for its sum.
constexpr int64_t kMostTogether = 16;
DRSN_INLINE int64_t rows_together(int64_t n) { return larger(1, smaller(kMostTogether, 1024 / n)); }

template <class T>
void mean_shrink_rows(const T* x, const accumulator_t<T>* alpha, accumulator_t<T>* mean, const T* residual, T* y,
                      Planes mask, int64_t rows, int64_t n, Store to) {
  for (int64_t first = 0; first < rows; first += rows_together(n)) {
    const int64_t end = smaller(rows, first + rows_together(n));
    for (int64_t r = first; r < end; ++r) {
      double sum = 0;
      add_line<T>(1, n, &sum,
                  [&](int64_t i, int64_t count) DRSN_LAMBDA { return magnitude_of<T>(load(x + r * n + i, count)); });
      mean[r] = accumulator_t<T>(sum / double(n));
    }
    for (int64_t r = first; r < end; ++r) {
      const accumulator_t<T> tau = alpha[r] * mean[r];
      shrink_line(x + r * n, &tau, 1, residual ? residual + r * n : nullptr, y + r * n, planes_of_row(mask, r), n,
                  before(to, rows - r - 1, n));
    }
  }
}

template <class T>
void mean_shrink_rows_backward(const T* g, ConstPlanes mask, const accumulator_t<T>* alpha,
                               const accumulator_t<T>* mean, const accumulator_t<T>* grad_mean,
                               accumulator_t<T>* dalpha, T* dx, int64_t rows, int64_t n, Store to) {
  using A = accumulator_t<T>;
  for (int64_t first = 0; first < rows; first += rows_together(n)) {
    const int64_t end = smaller(rows, first + rows_together(n));
    A share[kMostTogether];
    for (int64_t r = first; r < end; ++r) {
      const ConstPlanes planes = planes_of_row(mask, r);
      double sum = 0;
      add_line<T>(1, n, &sum, [&](int64_t i, int64_t count) DRSN_LAMBDA {
        return active_term<T, false>(g + r * n, planes, i, count);
      });
      const A dtau = threshold_gradient(alpha[r], mean[r], sum);
      if (dalpha) dalpha[r] = dtau * mean[r];
      share[r - first] = (dtau * alpha[r] + (grad_mean ? grad_mean[r] : A(0))) / A(n);
    }
    for (int64_t r = first; r < end && dx; ++r)
      gradient_line<T, Terms::kBoth, false>(g + r * n, planes_of_row(mask, r), &share[r - first], 1, dx + r * n, n,
                                            before(to, rows - r - 1, n));
  }
}
