"""Files: uploads streamed to disk, with their size and sha256."""
