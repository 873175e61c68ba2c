"""The stages of a run, each a function from a config and artifacts on disk to new artifacts."""
