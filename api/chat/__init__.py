"""Chat, completions and generation: prompts passed on to the server that holds the model."""
