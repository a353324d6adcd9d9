"""``python -m cdgcnet.comparison`` is ``cdgcnet compare``."""

import argparse
import signal
import sys
from typing import Any

from cdgcnet.comparison import command


def _stop(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="compare",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)  # end the rows' processes too
    try:
        return command.run(args)
    except (ValueError, OSError, MemoryError) as error:
        parser.exit(1, f"compare: error: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
