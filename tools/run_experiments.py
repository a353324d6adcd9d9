#!/usr/bin/env python
"""The same as ``cdgcnet experiments``."""

import sys

from cdgcnet.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("experiments"))
