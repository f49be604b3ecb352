"""`python -m cfm_lite.cli` does what `cfm-lite` does, so that torchrun can start it."""

import sys

from cfm_lite.cli import main

if __name__ == "__main__":
    sys.exit(main())
