"""The whole comparison: ``python -m benchmarks --record``, then ``python -m benchmarks report``."""
