"""Measured ratios against published packages and forms, both sides in one process: `make bench`. No tests: nothing here is collected."""
