"""The train phase: set-up, the loop, and what happens between two steps."""
