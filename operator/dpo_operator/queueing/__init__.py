"""Which job is reconciled next, and which gang gets its turn next. No I/O."""
