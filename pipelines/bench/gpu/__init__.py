"""What a GPU does with this program, learned in a few minutes: ``make gpu`` (docs/gpu.md)."""
