// abs-mean, gate, threshold, soft threshold and residual. Where the gate couples no samples, some of them go through
// all of it while they are in a thread's cache.
#include "backend.h"
#include "gate.h"

namespace drsn::cpu {
namespace {

template <class T>
void forward(const GatedShrink& p) {
  const Lines lines = lines_of_samples(p.rows, p.gate);
  const Segments mask(p.mask, lines, kShrinkPlanes);
  const T* x = as<T>(p.x);
  GateForward<accumulator_t<T>> gate(p);
  two_passes(
      lines, p.gate.norm.kind == NormKind::kBatch,
      [&](const Range& at, double* sums) { add_abs_sums(lines, at, x, sums); },
      [&](int64_t sample, int64_t count, const double* sums) { gate.run(sample, count, sums); },
      [&](const Range& at) { shrink_lines(lines, at, x, gate.tau.data(), as<T>(p.residual), as<T>(p.y), mask); });
}

template <class T>
void backward(const GatedShrinkBackward& p) {
  const Lines lines = lines_of_samples(p.rows, p.gate);
  const Segments mask(p.mask, lines, kShrinkPlanes);
  const T* g = as<T>(p.grad);
  GateBackward<accumulator_t<T>> gate(p);
  two_passes(
      lines, p.gate.norm.kind == NormKind::kBatch,
      [&](const Range& at, double* sums) { add_active_sums(lines, at, g, mask, sums); },
      [&](int64_t sample, int64_t count, const double* sums) { gate.run(sample, count, sums, 1); },
      [&](const Range& at) {
        if (p.dx) combine_lines(lines, at, g, mask, gate.share.data(), as<T>(p.dx));
      });
  gate.write_parameters();
}

}  // namespace

void gated_shrink(const GatedShrink& p) {
  with_type(p.dtype, [&](auto type) { forward<decltype(type)>(p); });
}

void gated_shrink_backward(const GatedShrinkBackward& p) {
  with_type(p.dtype, [&](auto type) { backward<decltype(type)>(p); });
}

}  // namespace drsn::cpu
