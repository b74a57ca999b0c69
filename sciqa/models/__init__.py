"""Models room: language models loaded from packages, folders, GGUF files or the hub."""
