// The gate between abs-means and thresholds, forward and backward, for float and double.
#pragma once

#include <vector>

#include "params.h"

namespace drsn::cpu {

// Samples [first, first + count) from their abs-means to `state`. A gate that normalises over the batch takes all
// samples at once, and brings its running statistics up to date.
template <class A>
void gate_forward(const Gate& gate, const Rows& rows, const A* mean, A* state, int64_t first, int64_t count);

// mean and 1 / sqrt(variance + eps) of the running statistics.
template <class A>
void running_statistics(const Norm& norm, int64_t features, A* mean, A* rstd);

// The same of one feature from the mean and biased variance of `samples` numbers, which enter the running statistics.
template <class A>
class BatchStatistics {
 public:
  BatchStatistics(const Norm& norm, int64_t samples);
  void set(int64_t feature, double mean, double variance, A* mean_out, A* rstd_out) const;

 private:
  const Norm& norm_;
  double samples_, factor_;
};

template <class A>
class GateBackward {
 public:
  GateBackward(const Gate& gate, const Rows& rows, const A* mean, const A* state);

  // From the gradients of alpha to those of the means, for samples [first, first + count); all samples at once where
  // the gate normalises over the batch. dalpha is (count, outputs), dmean (count, channels).
  void run(int64_t first, int64_t count, const A* dalpha, A* dmean);

  // The parameters' gradients, once every sample has been through run(); each may be null.
  void parameters(A* dw1, A* db1, A* dnorm_weight, A* dnorm_bias, A* dw2, A* db2) const;

 private:
  void backward_of_batch();
  void backward_of_samples(int64_t first, int64_t count);

  const Gate& gate_;
  int64_t samples_, channels_, hidden_, outputs_;
  const A *mean_, *z1_, *alpha_, *norm_mean_, *norm_rstd_;
  std::vector<A> weight_;                                    // of the normalisation, (hidden)
  std::vector<A> sample_rstd_;                               // (samples), kLayer and kRms
  std::vector<A> x_hat_, activation_, dhidden_, dz1_, dz2_;  // (samples, hidden), and (samples, outputs)
};

}  // namespace drsn::cpu
