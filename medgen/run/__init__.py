"""A bundle as a function: open, check, predict one case, a whole cohort, evaluate."""
