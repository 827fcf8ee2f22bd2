"""The report of a run as one HTML file, which asks nobody for anything."""
