"""Pure decision functions: (spec, status, observed state, now) -> (actions, new status). No I/O."""
