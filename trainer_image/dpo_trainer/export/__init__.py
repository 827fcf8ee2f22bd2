"""The export phase: a model folder that was loaded again and compared before it is committed."""
