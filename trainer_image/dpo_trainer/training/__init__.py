"""The train phase: one linear loop, and what it decides with."""
