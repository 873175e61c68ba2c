"""The processes of a run: who they are, how they start, and that they live."""
