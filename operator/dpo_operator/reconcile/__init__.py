"""One pass over one job: observe, plan, write, remember."""
