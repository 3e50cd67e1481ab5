"""Who answers prompts and embeds text: llama-server, Ollama, and whatever else speaks OpenAI's API."""
