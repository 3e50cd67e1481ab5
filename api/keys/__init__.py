"""API keys: made, shown once, listed and revoked."""
