"""The rules: one file each, a pure function from a record and the limits to a finding or None."""
