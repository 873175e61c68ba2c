"""Evaluation: benchmarks as one table, a resumable runner, intervals."""
