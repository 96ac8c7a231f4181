"""``python -m fastnets``: the command line."""

import sys

from fastnets.cli import main

if __name__ == "__main__":
    sys.exit(main())
