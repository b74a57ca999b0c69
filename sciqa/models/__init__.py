"""Load language models from packages, folders, GGUF files or the hub, and score options with them."""
