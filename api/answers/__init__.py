"""Answers from documents: a question's passages found, packed into its prompt, and cited."""
