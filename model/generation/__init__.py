"""Writing text: sampling, one token at a time, showing each step."""
