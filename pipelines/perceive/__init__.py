"""Token perception of one's own examples, without training."""
