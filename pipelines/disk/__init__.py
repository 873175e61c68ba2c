"""Artifacts: steps, their rows, and files that are whole or not there."""
