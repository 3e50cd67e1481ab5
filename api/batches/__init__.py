"""Batches: many requests in a file, in OpenAI's shape."""
