"""Large files that come in parts, in OpenAI's shape."""
