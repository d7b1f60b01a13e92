// Parameters to and from the accumulator's type.
#include "backend.h"
#include "parallel.h"

namespace drsn::cpu {
namespace {

constexpr int64_t kChunk = 512;

// n numbers of a row, by way of the type that T is computed in.
template <class T, class A>
void convert_some(bool narrows, T* data, int64_t stride, A* wide, int64_t n) {
  T given[kChunk];
  accumulator_t<T> values[kChunk];
  if (narrows) {
    std::copy(wide, wide + n, values);
    loops<T>().narrow(values, given, n);
    for (int64_t i = 0; i < n; ++i) data[i * stride] = given[i];
  } else {
    for (int64_t i = 0; i < n; ++i) given[i] = data[i * stride];
    loops<T>().widen(given, values, n);
    std::copy(values, values + n, wide);
  }
}

}  // namespace

void convert(const Conversions& p) {
  const auto run = [&](const Conversion& c, auto scalar, auto accumulator) {
    using T = decltype(scalar);
    using A = decltype(accumulator);
    for (int64_t row = 0; row < c.rows; ++row) {
      for_each_range(c.columns, kChunk, 1, [&](int64_t column, int64_t n) {
        convert_some(p.narrows, as<T>(c.data) + row * c.row_stride + column * c.column_stride, c.column_stride,
                     as<A>(c.wide) + row * c.columns + column, n);
      });
    }
  };
  for (int i = 0; i < p.count; ++i) {
    with_type(p.of[i].dtype, [&](auto scalar) {
      accumulates_in_double(p.accumulator) ? run(p.of[i], scalar, double{}) : run(p.of[i], scalar, float{});
    });
  }
}

}  // namespace drsn::cpu
