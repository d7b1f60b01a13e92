// From abs-means to thresholds through the gate, forward and backward, for float and double.
#pragma once

#include "lines.h"

namespace drsn::cpu {

// Lines in groups of a sample. A product for sixteen samples costs about as much as for one. Where the gate costs more
// than the samples' elements, a thread takes sixteen samples at a time.
Lines lines_of_samples(const Rows& rows, const Gate& gate);

// mean and 1 / sqrt(variance + eps) of the running statistics.
template <class A>
void running_statistics(const Norm& norm, int64_t features, A* mean, A* rstd);

// The same of one feature from the mean and biased variance of `count` numbers, which enter the running statistics.
template <class A>
class BatchStatistics {
 public:
  BatchStatistics(const Norm& norm, int64_t count);
  void set(int64_t feature, double mean, double variance, A* mean_out, A* rstd_out) const;

 private:
  const Norm& norm_;
  double count_, factor_;
};

// The parts of GateState.
template <class A>
struct StateParts {
  A *z1, *alpha, *norm_mean, *norm_rstd;

  StateParts(A* state, const Rows& rows, const Gate& gate) {
    const GateState at{rows.samples, gate.hidden, gate.outputs};
    z1 = state + at.hidden_at(), alpha = state + at.alpha_at();
    norm_mean = state + at.norm_mean_at(), norm_rstd = state + at.norm_rstd_at();
  }
};

// Both classes take samples [first, first + count) in a call of run(): all samples at once where the gate's norm is
// over the batch, else any, on any thread.
template <class A>
class GateForward {
 public:
  std::vector<A> tau;  // of every row

  explicit GateForward(const GatedShrink& p);

  // From the sums of |x| over the rows of the samples to mean, state and tau.
  void run(int64_t first, int64_t count, const double* sums);

 private:
  const GatedShrink& p_;
  StateParts<A> state_;
  std::vector<A> norm_weight_, norm_bias_;  // (hidden)
};

template <class A>
class GateBackward {
 public:
  std::vector<A> share;  // of every row: what each element receives along its sign

  explicit GateBackward(const GatedShrinkBackward& p);

  // Every row's tau, computed again.
  std::vector<A> thresholds() const;

  // From the sums of active * sign * g over the rows of the samples, sums[row * step], to share.
  void run(int64_t first, int64_t count, const double* sums, int64_t step);

  // Writes the parameters' gradients, once every sample has been through run().
  void write_parameters() const;

 private:
  void backward_of_batch();
  void backward_of_samples(int64_t first, int64_t count);

  const GatedShrinkBackward& p_;
  StateParts<const A> state_;
  int64_t samples_, channels_, hidden_, outputs_;
  std::vector<A> norm_weight_, norm_bias_;                   // (hidden)
  std::vector<A> sample_rstd_;                               // (samples), kLayer and kRms
  std::vector<A> x_hat_, activation_, dhidden_, dz1_, dz2_;  // (samples, hidden), and (samples, outputs)
};

}  // namespace drsn::cpu
