"""The benchmarks in lm-evaluation-harness."""
