"""Parts of spec.training."""
