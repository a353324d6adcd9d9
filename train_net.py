#!/usr/bin/env python
"""The same as ``cdgcnet train``, under the name that Detectron2 projects have for it."""

import sys

from cdgcnet.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("train"))
