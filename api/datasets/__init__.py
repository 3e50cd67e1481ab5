"""Training data, before anything is trained on it."""
