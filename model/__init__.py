"""The transformer, and rooms for what belongs to a trained one. Read layers.py, then gpt.py, then the rooms."""
