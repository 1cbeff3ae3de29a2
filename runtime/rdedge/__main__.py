"""``python -m rdedge`` is ``rdedge``; torchrun starts it this way."""

import sys

from rdedge.cli import main

if __name__ == "__main__":
    sys.exit(main())
