"""Preference losses and the metrics that are logged of them."""
