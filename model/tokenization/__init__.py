"""Tokenizers: their files, encoding a corpus fast, learning merges."""
