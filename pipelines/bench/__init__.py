"""Benchmarks behind ``vppo bench``: ours against the alternative, side by side in one run."""
