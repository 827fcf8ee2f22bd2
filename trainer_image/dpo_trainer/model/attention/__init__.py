"""Attention over packed pairs: which kernel computes it, and how each one is called."""
