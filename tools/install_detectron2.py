#!/usr/bin/env python
"""The same as ``cdgcnet install-detectron2``."""

import sys

from cdgcnet.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("install-detectron2"))
