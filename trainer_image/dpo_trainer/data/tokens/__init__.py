"""Chat templates, tokenization and truncation of one pair."""
