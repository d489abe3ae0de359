"""Looking inside: the forward pass taken apart, heads, parts switched off."""
