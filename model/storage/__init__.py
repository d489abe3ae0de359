"""Checkpoints and model files, safe loading, the layouts of Hugging Face and GGUF."""
