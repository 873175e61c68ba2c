"""What a step's tensors become before the policy gradient: one file an objective, all on the same tensors."""
