// soft_threshold, for every tau that broadcasts to x: tau is copied to a buffer at a time, so that one loop serves all.
#include <cmath>
#include <complex>

#include "backend.h"
#include "lines.h"

namespace drsn::cpu {
namespace {

constexpr int64_t kBuffer = 1024;  // elements of a buffer that stays in the first-level cache

// Adds up numbers that belong to `width` columns in turn: add(i, n, columns) adds those of n elements from i on to
// columns[0, n), with i and n multiples of the width. Columns repeat up to a buffer's length, so that few are as fast
// as many. Where that length is no multiple of 8, the bits of a mask are read with a shift.
template <class A, class Add>
void sum_columns(int64_t n, int64_t width, double* sums, const Add& add) {
  const int64_t step = width < kBuffer ? kBuffer / width * width : width;
  constexpr int64_t kFlush = 64;  // additions in A before they go on in double
  thread_local std::vector<A> columns;
  columns.resize(step);
  for (int64_t begin = 0; begin < n; begin += step * kFlush) {
    std::fill(columns.begin(), columns.end(), A(0));
    const int64_t end = std::min(n, begin + step * kFlush);
    for (int64_t i = begin; i < end; i += step) add(i, std::min(step, end - i), columns.data());
    for (int64_t first = 0; first < step; first += width) {
      for (int64_t j = 0; j < width; ++j) sums[j] += columns[first + j];
    }
  }
}

// Writes tau of the elements [begin, begin + n) of x, in memory order, to `out`.
template <class T, class A>
void copy_tau(const Broadcast& over, const T* tau, int64_t begin, int64_t n, A* out) {
  int64_t index[kMaxAxes];
  int64_t offset = 0;
  for (int axis = over.axes - 1; axis >= 0; --axis) {
    index[axis] = begin % over.size[axis];
    offset += index[axis] * over.stride[axis];
    begin /= over.size[axis];
  }
  const int last = over.axes - 1;
  const int64_t stride = over.stride[last];
  while (n > 0) {
    const int64_t count = std::min(n, over.size[last] - index[last]);
    if (stride == 0) {
      A one;
      loops<T>().widen(tau + offset, &one, 1);
      std::fill(out, out + count, one);
    } else if (stride == 1) {
      loops<T>().widen(tau + offset, out, count);
    } else {
      for (int64_t i = 0; i < count; ++i) loops<T>().widen(tau + offset + i * stride, out + i, 1);
    }
    out += count;
    n -= count;
    offset += count * stride;
    index[last] += count;
    for (int axis = last; axis > 0 && index[axis] == over.size[axis]; --axis) {
      index[axis] = 0;
      offset += over.stride[axis - 1] - over.size[axis] * over.stride[axis];
      ++index[axis - 1];
    }
  }
}

// tau along x in memory order. Where it is one number for many elements it is not copied.
template <class T>
class Threshold {
 public:
  using A = accumulator_t<T>;
  Threshold(const void* tau, bool in_accumulator, double value, const Broadcast& over)
      : tau_(tau), wide_(in_accumulator), value_(A(value)), over_(over) {}

  // Calls run(i, n, tau) for elements [i, i + n) of [begin, begin + n); n is a multiple of 8 but in the last call.
  template <class Run>
  void for_each(int64_t begin, int64_t n, const Run& run) const {
    constexpr int64_t kMany = 512;  // elements
    const int64_t end = begin + n, inner = over_.size[over_.axes - 1];
    const bool repeats = !tau_ || over_.stride[over_.axes - 1] == 0;
    A buffer[kBuffer];
    for (int64_t i = begin; i < end;) {
      const int64_t left = tau_ ? std::min(end - i, inner - i % inner) : end - i;
      int64_t count = std::min(end - i, kBuffer);
      if (repeats && (left >= kMany || left == end - i)) {
        count = left == end - i ? left : left / 8 * 8;
        const A one = tau_ ? (read(i, 1, buffer), buffer[0]) : value_;
        run(i, count, Values<A>{&one, false});
      } else {
        read(i, count, buffer);
        run(i, count, Values<A>{buffer, true});
      }
      i += count;
    }
  }

 private:
  void read(int64_t begin, int64_t n, A* out) const {
    if (wide_) {
      copy_tau(over_, as<A>(tau_), begin, n, out);
    } else {
      copy_tau(over_, as<T>(tau_), begin, n, out);
    }
  }

  const void* tau_;
  bool wide_;
  A value_;
  const Broadcast& over_;
};

// Calls run(begin, n) for a thread's cache of elements at a time.
template <class Run>
void for_all(int64_t numel, const Run& run) {
  for_each_range(numel, kCached, 1, run);
}

ConstPlanes read_mask(const uint8_t* mask, int64_t numel, int64_t begin) {
  return {mask + kNegative * mask_bytes(numel), nullptr, mask + kSoftThresholdActive * mask_bytes(numel), begin};
}

Planes write_mask(uint8_t* mask, int64_t numel, int64_t begin) {
  if (!mask) return {};
  return {mask + kNegative * mask_bytes(numel) + begin / 8, nullptr,
          mask + kSoftThresholdActive * mask_bytes(numel) + begin / 8};
}

// Adds up what each element contributes to its tau. contribute(i, n, out) writes the contributions of [i, i + n), n at
// most kBuffer, total(i, n) returns their sum; out is null where no sum is wanted. The axes of `over` are seen as
// (outer, reduced, inner); a piece is some of `reduced` by some of `inner`, by their sizes alone.
template <class A, class Contribute, class Total>
void reduce_to_tau(const Broadcast& over, int64_t numel, double* dtau, const Contribute& contribute,
                   const Total& total) {
  if (!dtau) return for_all(numel, [&](int64_t begin, int64_t n) { contribute(begin, n, static_cast<A*>(nullptr)); });
  const int last = over.axes - 1;
  const bool repeats = over.stride[last] == 0;
  const int64_t inner = repeats ? 1 : over.size[last];
  const int reduced_axis = repeats ? last : (last > 0 && over.stride[last - 1] == 0 ? last - 1 : -1);
  const int64_t reduced = reduced_axis < 0 ? 1 : over.size[reduced_axis];
  const int outer_axes = reduced_axis < 0 ? last : reduced_axis;
  const int64_t outer = numel / (reduced * inner);

  const int64_t width = std::min(inner, kBuffer), height = std::max<int64_t>(1, kGrain / width);
  const int64_t across = ceil_div(inner, width), down = ceil_div(reduced, height);  // pieces
  std::vector<double> parts(outer * down * inner);
  for_each_task(outer * down * across, std::min(height, reduced) * width, [&](int64_t piece) {
    const int64_t column = piece % across * width, row = piece / across % down * height;
    const int64_t columns = std::min(width, inner - column), rows = std::min(height, reduced - row);
    const int64_t begin = (piece / across / down * reduced + row) * inner + column;
    double* sums = &parts[piece / across * inner + column];
    A buffer[kBuffer];
    if (inner == 1) {
      for (int64_t i = 0; i < rows; i += kBuffer) *sums += total(begin + i, std::min(kBuffer, rows - i));
    } else if (across > 1) {
      for (int64_t r = 0; r < rows; ++r) {
        contribute(begin + r * inner, columns, buffer);
        for (int64_t j = 0; j < columns; ++j) sums[j] += buffer[j];
      }
    } else {
      sum_columns<A>(rows * inner, inner, sums, [&](int64_t i, int64_t n, A* out) {
        contribute(begin + i, n, buffer);
        for (int64_t j = 0; j < n; ++j) out[j] += buffer[j];
      });
    }
  });

  for (int64_t o = 0; o < outer; ++o) {
    int64_t offset = 0;
    for (int64_t axis = outer_axes - 1, rest = o; axis >= 0; --axis) {
      offset += rest % over.size[axis] * over.stride[axis];
      rest /= over.size[axis];
    }
    for (int64_t i = 0; i < down * inner; ++i) {
      dtau[offset + (repeats ? 0 : i % inner * over.stride[last])] += parts[o * down * inner + i];
    }
  }
}

// Runs `reduce` on a buffer of sums and rounds them to the type of dtau.
template <class T, class Reduce>
void write_dtau(const SoftThresholdBackward& p, const Reduce& reduce) {
  using A = accumulator_t<T>;
  if (!p.dtau) return reduce(nullptr);
  std::vector<double> sums(p.dtau_numel);
  reduce(sums.data());
  const std::vector<A> narrow(sums.begin(), sums.end());
  if (p.tau_in_accumulator) {
    std::copy(narrow.begin(), narrow.end(), as<A>(p.dtau));
  } else {
    loops<T>().narrow(narrow.data(), as<T>(p.dtau), p.dtau_numel);
  }
}

template <class T>
void forward(const SoftThreshold& p) {
  const auto& loop = loops<T>();
  const T* x = as<T>(p.x);
  T* y = as<T>(p.y);
  const Threshold<T> threshold(p.tau, p.tau_in_accumulator, p.value, p.over);
  const Store to{streams(y, x, p.numel)};
  for_all(p.numel, [&](int64_t begin, int64_t n) {
    threshold.for_each(begin, n, [&](int64_t i, int64_t count, Values<accumulator_t<T>> tau) {
      loop.shrink(x + i, tau, nullptr, y + i, write_mask(p.mask, p.numel, i), count, to);
    });
  });
}

template <class T>
void backward(const SoftThresholdBackward& p) {
  using A = accumulator_t<T>;
  const auto& loop = loops<T>();
  const T* g = as<T>(p.grad);
  T* dx = as<T>(p.dx);
  const Store to{streams(dx, g, p.numel)};
  const auto gradient_of_x = [&](int64_t i, int64_t n) {
    if (dx) loop.pass(g + i, read_mask(p.mask, p.numel, i), dx + i, n, to);
  };
  // dtau = -sign * g where active
  const auto gradient_of_tau = [&](int64_t i, int64_t n, A* out) {
    loop.tau_gradient(g + i, read_mask(p.mask, p.numel, i), out, n);
  };
  const bool elementwise = p.over.axes == 1 && p.over.stride[0] == 1;
  if (p.dtau && elementwise) {
    for_all(p.numel, [&](int64_t begin, int64_t n) {
      A buffer[kBuffer];
      for (int64_t i = begin; i < begin + n; i += kBuffer) {
        const int64_t count = std::min(kBuffer, begin + n - i);
        gradient_of_x(i, count);
        gradient_of_tau(i, count, p.tau_in_accumulator ? as<A>(p.dtau) + i : buffer);
        if (!p.tau_in_accumulator) loop.narrow(buffer, as<T>(p.dtau) + i, count);
      }
    });
    return;
  }
  write_dtau<T>(p, [&](double* dtau) {
    reduce_to_tau<A>(
        p.over, p.numel, dtau,
        [&](int64_t i, int64_t n, A* out) {
          gradient_of_x(i, n);
          if (out) gradient_of_tau(i, n, out);
        },
        [&](int64_t i, int64_t n) {
          gradient_of_x(i, n);
          double sum = 0;
          loop.active_sums(g + i, read_mask(p.mask, p.numel, i), 1, 1, n, &sum);
          return 0.0 - sum;
        });
  });
}

// |z|. In a wider type no square overflows, and unlike std::hypot it asks for no new C library.
inline float magnitude(std::complex<float> z) {
  const double re = z.real(), im = z.imag();
  return float(std::sqrt(re * re + im * im));
}
inline double magnitude(std::complex<double> z) {
  const long double re = z.real(), im = z.imag();
  return double(std::sqrt(re * re + im * im));
}

// Keeps the phase and takes tau from the magnitude.
template <class A>
void complex_forward(const SoftThreshold& p) {
  const auto* x = as<std::complex<A>>(p.x);
  auto* y = as<std::complex<A>>(p.y);
  const Threshold<A> threshold(p.tau, p.tau_in_accumulator, p.value, p.over);
  for_all(p.numel, [&](int64_t begin, int64_t n) {
    threshold.for_each(begin, n, [&](int64_t i, int64_t count, Values<A> tau) {
      for (int64_t j = 0; j < count; ++j) {
        const A t = relu(tau.data[tau.vary ? j : 0]);
        const A r = magnitude(x[i + j]);
        const A left = relu(r - t);
        y[i + j] = left == A(0) ? std::complex<A>(0) : t == A(0) ? x[i + j] : x[i + j] * (left / r);
      }
    });
  });
}

// With u = z / r and a = tau / r, where r > tau: dz = (1 - a) g + a u Re(conj(u) g), dtau = -Re(conj(u) g).
template <class A>
void complex_backward(const SoftThresholdBackward& p) {
  const auto* x = as<std::complex<A>>(p.x);
  const auto* g = as<std::complex<A>>(p.grad);
  auto* dx = as<std::complex<A>>(p.dx);
  const Threshold<A> threshold(p.tau, p.tau_in_accumulator, p.value, p.over);
  const auto contribute = [&](int64_t begin, int64_t n, A* out) {
    threshold.for_each(begin, n, [&](int64_t i, int64_t count, Values<A> tau) {
      for (int64_t j = 0; j < count; ++j) {
        const A raw = tau.data[tau.vary ? j : 0];
        const A t = relu(raw);
        const std::complex<A> z = x[i + j];
        const A r = magnitude(z);
        const bool active = r > t;
        const std::complex<A> u = active ? std::complex<A>(z.real() / r, z.imag() / r) : std::complex<A>(0);
        const A along = u.real() * g[i + j].real() + u.imag() * g[i + j].imag();
        const A a = active ? t / r : A(0);
        if (dx) dx[i + j] = active ? g[i + j] * (A(1) - a) + u * (a * along) : std::complex<A>(0);
        if (out) out[i + j - begin] = active && !(raw < A(0)) ? -along : A(0);
      }
    });
  };
  const auto total = [&](int64_t i, int64_t n) {
    A buffer[kBuffer];
    contribute(i, n, buffer);
    return std::accumulate(buffer, buffer + n, 0.0);
  };
  write_dtau<A>(p, [&](double* dtau) { reduce_to_tau<A>(p.over, p.numel, dtau, contribute, total); });
}

}  // namespace

void soft_threshold(const SoftThreshold& p) {
  if (p.dtype == DType::kComplexFloat) return complex_forward<float>(p);
  if (p.dtype == DType::kComplexDouble) return complex_forward<double>(p);
  with_type(p.dtype, [&](auto type) { forward<decltype(type)>(p); });
}

void soft_threshold_backward(const SoftThresholdBackward& p) {
  if (p.dtype == DType::kComplexFloat) return complex_backward<float>(p);
  if (p.dtype == DType::kComplexDouble) return complex_backward<double>(p);
  with_type(p.dtype, [&](auto type) { backward<decltype(type)>(p); });
}

}  // namespace drsn::cpu
