"""The ranks: joining, waiting for rank 0, small agreements."""
