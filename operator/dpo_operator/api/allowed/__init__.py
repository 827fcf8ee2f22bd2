"""What jobs may ask for: the variables that all may set, and what the administrator allows besides."""
