"""Responses in OpenAI's shape, out of answers of the chat route: for the API, and for rows of a batch."""
