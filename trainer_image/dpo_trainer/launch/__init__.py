"""The parent of a pod's ranks: start, watch, signal, collect stacks. No torch."""
