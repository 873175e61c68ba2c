"""The prepare stage: any source -> rows that can be trained on."""
