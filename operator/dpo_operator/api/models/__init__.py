"""Sizes and architectures of models, read from their config.json alone; no torch."""
