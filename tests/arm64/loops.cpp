// Runs every loop of csrc/cpu/loops.h on fixed numbers and prints a line for each: what it is and a hash of what it
// wrote. Two builds that print the same give the same bits. One NaN counts as any other: processors differ in its sign.
#include "loops.h"

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "period.h"

namespace drsn::cpu {
namespace {

template <class T>
struct Format;
template <>
struct Format<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr const char* kName = "float";
};
template <>
struct Format<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr const char* kName = "double";
};
template <>
struct Format<Half> {
  using Bits = uint16_t;
  static constexpr int kMantissa = 10;
  static constexpr const char* kName = "half";
};
template <>
struct Format<BFloat16> {
  using Bits = uint16_t;
  static constexpr int kMantissa = 7;
  static constexpr const char* kName = "bfloat16";
};

template <class T>
using bits_of = typename Format<T>::Bits;
template <class T>
constexpr bits_of<T> kSign = bits_of<T>(bits_of<T>(1) << (8 * sizeof(T) - 1));
template <class T>
constexpr bits_of<T> kMantissa = bits_of<T>((bits_of<T>(1) << Format<T>::kMantissa) - 1);
template <class T>
constexpr bits_of<T> kInfinity = bits_of<T>(~(kSign<T> | kMantissa<T>));

uint64_t random_bits() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return state >> 32 ^ state << 32;
}

// What the numbers of an input are: `special` ones also infinite, NaN, and the largest.
enum class Kind { kFinite, kSpecial };
constexpr Kind kKinds[] = {Kind::kFinite, Kind::kSpecial};

template <class T>
T random_number(Kind kind) {
  using B = bits_of<T>;
  const B one = (kInfinity<T> >> 1) & kInfinity<T>;  // the exponent of 1
  const B mantissa = B(random_bits()) & kMantissa<T>, sign = B(random_bits()) & kSign<T>;
  B bits = B(one + ((random_bits() % 9) << Format<T>::kMantissa) - (B(6) << Format<T>::kMantissa)) | mantissa;
  switch (random_bits() % (kind == Kind::kSpecial ? 24 : 64)) {
    case 0:
      bits = 0;
      break;
    case 1:
      bits = mantissa;  // subnormal
      break;
    case 2:
      bits = one;
      break;
    case 3:
      if (kind == Kind::kSpecial) bits = kInfinity<T>;
      break;
    case 4:
      if (kind == Kind::kSpecial) bits = kInfinity<T> | B(1) << (Format<T>::kMantissa - 1) | mantissa;  // NaN
      break;
    case 5:
      if (kind == Kind::kSpecial) bits = kInfinity<T> - 1;  // the largest finite number
      break;
  }
  bits |= sign;
  T number;
  std::memcpy(&number, &bits, sizeof(T));
  return number;
}

constexpr int64_t kPast = 32;  // what loops may read past the end of an array

template <class T>
std::vector<T> random_numbers(int64_t n, Kind kind) {
  std::vector<T> numbers(n + kPast);
  for (T& number : numbers) number = random_number<T>(kind);
  return numbers;
}

class Hash {
 public:
  template <class T>
  void add(const std::vector<T>& values) {
    for (const T& value : values) {
      uint64_t bits;
      if constexpr (std::is_same_v<T, uint8_t>) {
        bits = value;
      } else {
        bits_of<T> own;
        std::memcpy(&own, &value, sizeof(T));
        const bits_of<T> magnitude = own & bits_of<T>(~kSign<T>);
        bits = magnitude > kInfinity<T> ? uint64_t(-1) : own;
      }
      state_ = (state_ ^ bits) * 0x100000001b3u;
      state_ ^= state_ >> 29;
    }
  }
  uint64_t value() const { return state_; }

 private:
  uint64_t state_ = 0xcbf29ce484222325u;
};

// Prints a line for a call that wrote these.
template <class... Written>
void print(const std::string& call, const Written&... written) {
  Hash hash;
  (hash.add(written), ...);
  std::printf("%s %016llx\n", call.c_str(), (unsigned long long)hash.value());
}

// One kind of inputs of one length.
template <class T>
struct Case {
  using A = accumulator_t<T>;
  const Loops<T>& run = loops<T>();
  int64_t n;
  Kind kind;

  std::string name(const char* loop, int64_t period = 0) const {
    return std::string(loop) + " " + Format<T>::kName + (kind == Kind::kSpecial ? " special " : " finite ") +
           std::to_string(n) + (period > 0 ? " period " + std::to_string(period) : "");
  }
  std::vector<T> numbers(int64_t count) const { return random_numbers<T>(count, kind); }
};

constexpr int64_t kPeriods[] = {1, 32, 96, 67};

// Numbers of `count` rows or channels, or of the columns of a period.
template <class A>
std::vector<A> random_columns(int64_t count, int64_t period, Kind kind) {
  auto numbers = random_numbers<A>(period == 1 ? count : period, kind);
  if (period > 1) repeat(numbers.data(), period, period, numbers.data());
  return numbers;
}

// Bytes for the planes of `lines` masks.
struct Mask {
  int64_t plane;
  std::vector<uint8_t> bytes;

  Mask(int64_t lines, int64_t n) : plane(mask_bytes(n)), bytes(3 * plane * lines + kPast) {}
  Planes write() { return {&bytes[0], &bytes[plane], &bytes[2 * plane], 3 * plane}; }
  Planes write_two() { return {&bytes[0], nullptr, &bytes[2 * plane], 3 * plane}; }
  ConstPlanes read(int64_t offset = 0) const {
    return {&bytes[0], &bytes[plane], &bytes[2 * plane], offset, 3 * plane};
  }
};

template <class T>
void elements(const Case<T>& c) {
  using A = accumulator_t<T>;
  const int64_t n = c.n;
  const auto x = c.numbers(n), g = c.numbers(n), residual = c.numbers(n);
  const auto tau = random_numbers<A>(n, c.kind);
  std::vector<A> wide(n + kPast);
  c.run.widen(x.data(), wide.data(), n);
  print(c.name("widen"), wide);
  std::vector<T> out(n + kPast);
  c.run.narrow(tau.data(), out.data(), n);
  print(c.name("narrow"), out);

  Mask signs(1, n), mask(1, n);
  c.run.sign_mask(x.data(), signs.write(), n);
  print(c.name("sign_mask"), signs.bytes);
  for (const bool vary : {false, true}) {
    const Values<A> by{tau.data(), vary};
    c.run.shrink(x.data(), by, nullptr, out.data(), {}, n, {});
    print(c.name(vary ? "shrink by each" : "shrink by one"), out);
    c.run.shrink(x.data(), by, residual.data(), out.data(), mask.write_two(), n, {});
    print(c.name(vary ? "shrink by each with mask" : "shrink by one with mask"), out, mask.bytes);
  }
  for (const int64_t offset : {0, 3}) {
    if (offset >= n) continue;
    std::vector<A> dtau(n + kPast);
    c.run.tau_gradient(g.data(), mask.read(offset), dtau.data(), n - offset);
    print(c.name("tau_gradient", offset), dtau);
    std::vector<T> dx(n + kPast);
    c.run.pass(g.data(), mask.read(offset), dx.data(), n - offset, {});
    print(c.name("pass", offset), dx);
    std::vector<double> sum(1);
    c.run.active_sums(g.data(), mask.read(offset), 1, 1, n - offset, sum.data());
    print(c.name("active_sums", offset), sum);
  }
}

template <class T>
void lines(const Case<T>& c, int64_t period) {
  using A = accumulator_t<T>;
  const int64_t n = c.n, count = period == 1 ? 3 : 1;
  const auto x = c.numbers(count * n), g = c.numbers(count * n), residual = c.numbers(count * n);
  const auto tau = random_columns<A>(count, period, c.kind);
  std::vector<double> sums(count * period);
  c.run.abs_sums(x.data(), period, count, n, sums.data());
  print(c.name("abs_sums", period), sums);

  std::vector<T> y(count * n + kPast), dx(count * n + kPast);
  Mask mask(count, n);
  c.run.shrink_lines(x.data(), tau.data(), period, nullptr, y.data(), {}, count, n, {});
  print(c.name("shrink_lines", period), y);
  c.run.shrink_lines(x.data(), tau.data(), period, residual.data(), y.data(), mask.write(), count, n, {true, 99});
  print(c.name("shrink_lines with mask", period), y, mask.bytes);
  c.run.active_sums(g.data(), mask.read(), period, count, n, sums.data());
  print(c.name("active_sums", period), sums);
  c.run.combine_lines(nullptr, mask.read(), tau.data(), period, dx.data(), count, n, {});
  print(c.name("combine_lines of signs", period), dx);
  c.run.combine_lines(g.data(), mask.read(), tau.data(), period, dx.data(), count, n, {});
  print(c.name("combine_lines", period), dx);
}

template <class T>
void rows(const Case<T>& c) {
  using A = accumulator_t<T>;
  constexpr int64_t kRows = 18;  // more than are worked on together
  const int64_t n = c.n;
  const auto x = c.numbers(kRows * n), g = c.numbers(kRows * n);
  const auto alpha = random_numbers<A>(kRows, c.kind), grad_mean = random_numbers<A>(kRows, c.kind);
  std::vector<T> y(kRows * n + kPast), dx(kRows * n + kPast);
  std::vector<A> mean(kRows), dalpha(kRows);
  Mask mask(kRows, n);
  c.run.mean_shrink_rows(x.data(), alpha.data(), mean.data(), g.data(), y.data(), mask.write(), kRows, n, {});
  print(c.name("mean_shrink_rows"), y, mean, mask.bytes);
  c.run.mean_shrink_rows_backward(g.data(), mask.read(), alpha.data(), mean.data(), grad_mean.data(), dalpha.data(),
                                  dx.data(), kRows, n, {});
  print(c.name("mean_shrink_rows_backward"), dx, dalpha);
  std::vector<double> means(kRows), squares(kRows);
  c.run.moments(x.data(), kRows, n, means.data(), squares.data());
  print(c.name("moments"), means, squares);
}

template <class T>
void batch_norm(const Case<T>& c, int64_t period) {
  using A = accumulator_t<T>;
  // Rows of five channels, or a line of channels_last; both in two runs, which lie apart in y and g.
  const int64_t lines = period == 1 ? 7 : 1, channels = period == 1 ? 5 : 1, n = c.n;
  const int64_t padded[] = {1, n + 4};
  const Walk walk{lines, 2, n, padded, 2 * n + 6, period, period == 1 ? 3 : 0, channels};
  const int64_t size = lines * 2 * n, padded_size = lines * walk.padded_line;
  const auto x = c.numbers(size), shortcut = c.numbers(size), g = c.numbers(padded_size);
  const auto numbers = [&](int64_t count) { return random_columns<A>(count, period, Kind::kFinite); };
  const auto center = numbers(channels), scale = numbers(channels), bias = numbers(channels);
  const auto at_center = numbers(channels), slope = numbers(channels);
  const auto tau = numbers(lines), share = numbers(lines);
  const Affine<A> affine{center.data(), scale.data(), bias.data()};
  const BatchNormNumbers<A> fixed{affine, nullptr, nullptr, tau.data(), share.data()};
  const BatchNormNumbers<A> over_batch{affine, at_center.data(), slope.data(), tau.data(), share.data()};

  std::vector<double> sums(5 * lines * period);
  c.run.centered_sums(x.data(), center.data(), period, n, sums.data());
  print(c.name("centered_sums", period), sums);
  c.run.norm_abs_sums(x.data(), affine, walk, sums.data());
  print(c.name("norm_abs_sums", period), sums);
  c.run.relu_sums(g.data(), x.data(), fixed, walk, sums.data());
  print(c.name("relu_sums", period), sums);
  c.run.shrink_sums(g.data(), x.data(), fixed, walk, sums.data());
  print(c.name("shrink_sums", period), sums);

  std::vector<T> y(padded_size + kPast), dx(size + kPast);
  c.run.batch_norm_relu(x.data(), affine, y.data(), walk);
  print(c.name("batch_norm_relu", period), y);
  c.run.relu_combine(g.data(), x.data(), over_batch, shortcut.data(), dx.data(), walk);
  print(c.name("relu_combine over the batch", period), dx);
  c.run.relu_combine(g.data(), x.data(), fixed, nullptr, dx.data(), walk);
  print(c.name("relu_combine", period), dx);
  c.run.shrink_combine(g.data(), x.data(), over_batch, nullptr, dx.data(), walk);
  print(c.name("shrink_combine over the batch", period), dx);
  c.run.shrink_combine(g.data(), x.data(), fixed, shortcut.data(), dx.data(), walk);
  print(c.name("shrink_combine", period), dx);
  c.run.norm_shrink(x.data(), affine, tau.data(), shortcut.data(), dx.data(), walk);
  print(c.name("norm_shrink", period), dx);
}

template <class T>
void all_loops() {
  for (const Kind kind : kKinds) {
    for (const int64_t n : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100, 1023, 4096, 4099, 9001}) {
      const Case<T> c{loops<T>(), n, kind};
      elements(c);
      for (const int64_t period : kPeriods) {
        lines(c, period);
        batch_norm(c, period);
      }
      rows(c);
    }
  }
}

template <class A>
void products() {
  for (const Kind kind : kKinds) {
    for (const int64_t columns : {1, 5, 8, 16, 19}) {
      for (const int64_t rows : {1, 8, 13}) {
        const int64_t terms = 11, a_row = terms + 2, b_k = columns + 3, out_row = columns + 1;
        const auto a = random_numbers<A>(rows * a_row, kind), b = random_numbers<A>(terms * b_k, kind);
        std::vector<A> out(rows * out_row + kPast);
        multiply(Product<A>{a.data(), a_row, 1, b.data(), b_k, out.data(), out_row, rows, terms, columns});
        print(Case<A>{loops<A>(), columns, kind}.name("multiply", rows), out);
      }
    }
  }
}

// What makes a result of a convolution in one rounding or two: the processor's multiply-add.
void convolutions() {
  for (const int64_t group : {4, 8, 16}) {
    std::vector<int32_t> places(16 * 16);
    for (int64_t i = 0; i < 16 * 16; ++i) places[i] = int32_t(i % 16 / group * group + i / 16);
    for (const int64_t positions : {1, 7, 40, 600}) {
      const int64_t n = positions * group;
      const auto in = random_numbers<float>(n + 2 * group, Kind::kFinite), g = random_numbers<float>(n, Kind::kFinite);
      const auto weight = random_numbers<float>(3 * group * 16, Kind::kFinite);
      const auto bias = random_numbers<float>(16, Kind::kFinite);
      Taps taps{3, group, group, {&in[0], &in[group], &in[2 * group]}, weight.data(), places.data()};
      const Case<float> c{loops<float>(), n, Kind::kFinite};
      for (const bool relu : {false, true}) {
        taps.relu = relu;
        std::vector<float> out(n + kPast);
        convolve(taps, bias.data(), out.data(), n);
        print(c.name(relu ? "convolve with relu" : "convolve", group), out);
      }
      std::vector<double> sums((3 * group + 1) * 16);
      correlate(taps, g.data(), n, sums.data());
      print(c.name("correlate", group), sums);
    }
  }
}

}  // namespace
}  // namespace drsn::cpu

int main() {
  using namespace drsn::cpu;
  all_loops<float>();
  all_loops<double>();
  all_loops<Half>();
  all_loops<BFloat16>();
  products<float>();
  products<double>();
  convolutions();
}
