"""From rows of any supported layout to tokenized pairs on disk. No torch."""
