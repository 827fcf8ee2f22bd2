"""Commands for a person, on a work folder: report, preview, checkpoints."""
