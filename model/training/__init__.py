"""A training run: opened or resumed, how a step is computed, the optimizer, several processes."""
