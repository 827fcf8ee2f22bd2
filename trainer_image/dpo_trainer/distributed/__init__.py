"""The ranks: joining the process group, waiting for rank 0, JSON collectives, and partitioned weights."""
