"""Preference losses, and the metrics computed from them."""
