"""The score stage: two views of the image -> token perception."""
