"""The `dpo` command (also `kubectl dpo`)."""
