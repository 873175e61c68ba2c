"""The data and the model of the embedded default."""
