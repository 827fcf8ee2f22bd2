"""Legs of a sweep: what is kept of each, and which one is exported."""
