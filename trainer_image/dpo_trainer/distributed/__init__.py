"""The ranks: joining the process group, waiting for rank 0, JSON collectives, partitioned weights, and the memory of each rank's device."""
