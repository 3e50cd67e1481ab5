"""OpenAI's responses: answers as items, stored as turns of conversations that can be gone on with."""
