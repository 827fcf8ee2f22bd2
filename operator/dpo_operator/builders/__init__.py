"""Manifests of a job's child objects: a job in, a dict out, no I/O."""
