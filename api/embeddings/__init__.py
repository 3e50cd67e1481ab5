"""Embeddings: text passed on to the server of the embedding model."""
