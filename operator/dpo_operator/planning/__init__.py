"""Decisions about a job as pure functions: what is seen goes in, actions and the new status come out."""
