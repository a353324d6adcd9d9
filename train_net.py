#!/usr/bin/env python
"""The same as ``cdgcnet train``, and with --eval-only as ``cdgcnet eval``."""

import sys

from cdgcnet.cli.main import run_tool

if __name__ == "__main__":
    eval_only = "--eval-only" in sys.argv
    if eval_only:
        sys.argv.remove("--eval-only")
    sys.exit(run_tool("eval" if eval_only else "train"))
