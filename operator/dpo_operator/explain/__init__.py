"""Says in words what a job does, why, and what comes next: of plain data, without input or output."""
