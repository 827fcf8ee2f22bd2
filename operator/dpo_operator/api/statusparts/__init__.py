"""Parts of a DPOJob's status that stand for themselves."""
