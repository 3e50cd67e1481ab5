"""The HTTP API: FastAPI over the database, with what serves models behind it."""
