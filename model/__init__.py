"""The transformer and what belongs to a trained one. Reading order: layers, gpt, sampling, then the rest."""
