"""The prepare phase, and the typed record of what it made."""
