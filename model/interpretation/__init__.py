"""Looking inside a model: one forward pass, its attention heads, components ablated, and the surprise of a text."""
