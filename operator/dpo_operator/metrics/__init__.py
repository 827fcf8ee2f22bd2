"""Prometheus metrics of the operator: jobs, the process, recovery times."""
