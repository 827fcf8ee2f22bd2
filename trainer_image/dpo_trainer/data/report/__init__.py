"""The report about a tokenized dataset: figures, warnings, picture."""
