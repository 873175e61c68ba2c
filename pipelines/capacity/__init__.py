"""What a run takes, and whether it fits. Torch-free."""
