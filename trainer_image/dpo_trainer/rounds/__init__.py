"""Rounds on fresh answers: what the policy answers, which answers become pairs, and how policies compare."""
