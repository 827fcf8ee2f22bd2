"""Sweeps: the legs of a job with spec.sweep, what is reported of each, and which of them is exported."""
