"""The checkpoint stage: weights in Hugging Face format, and the trainer's state."""
