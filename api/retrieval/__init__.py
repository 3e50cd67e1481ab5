"""Finding passages, for a search and for an answer alike."""
