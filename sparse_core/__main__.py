"""``python -m sparse_core``: the same as the console script ``sparse-atoms``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
