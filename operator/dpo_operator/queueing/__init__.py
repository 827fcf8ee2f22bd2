"""Order of work: which job is reconciled next, and which gang gets the placement turn. No I/O."""
