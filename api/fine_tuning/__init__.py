"""OpenAI's fine-tuning jobs: the jobs of kind `fine_tune`, seen in another shape."""
