"""``python -m cdgcnet`` is the ``cdgcnet`` command."""

import sys

from cdgcnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
