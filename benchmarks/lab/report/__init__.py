"""docs/lab.md and its figures, made of the results file."""
