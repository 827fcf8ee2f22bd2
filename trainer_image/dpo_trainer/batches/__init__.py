"""Which pairs each step uses, how they are packed, and their layout as tensors."""
