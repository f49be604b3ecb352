"""Measured ratios against published packages and forms, both sides in one process: `make bench`. No
tests: nothing here is collected.
"""

import os

# torch reads it once, at import: else its profiler writes lines of its own
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
