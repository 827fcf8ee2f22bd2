"""The chart's alerts against recorded runs, by promtool."""
