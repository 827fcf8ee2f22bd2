"""The export phase: a model folder, verified by loading it before it is committed."""
