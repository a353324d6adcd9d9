"""Short digests that tell files, weights and settings apart."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def digest(parts: Iterable[bytes], size: int = 8) -> str:
    """Two hexadecimal digits per byte of ``size``; each part enters with its length."""
    found = hashlib.blake2b(digest_size=size)
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.hexdigest()


def digest_of(value: Any) -> str:
    """:func:`digest` of plain values, whatever the order of their keys."""
    return digest([json.dumps(value, sort_keys=True).encode()])
