"""What a run's figures say about its learning: pure rules over its record, their precedence, and diagnosis.json."""
