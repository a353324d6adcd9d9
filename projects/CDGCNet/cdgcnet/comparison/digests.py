"""Short digests that tell caches and records apart."""

import hashlib
import json
from typing import Any


def digest(*parts: bytes) -> str:
    """16 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.hexdigest()


def digest_of(value: Any) -> str:
    """:func:`digest` of plain values, whatever the order of their keys."""
    return digest(json.dumps(value, sort_keys=True).encode())
