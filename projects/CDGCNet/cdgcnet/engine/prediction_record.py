"""Which network and which image is behind each prediction of an output folder.

The folder keeps this in ``predictions.jsonl``. So the same command resumes where it was
interrupted, and predictions of different networks or images never mix.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cdgcnet.config.reading import differences
from cdgcnet.utils.io import atomic_write

RECORD = "predictions.jsonl"


class Source(NamedTuple):
    """An image or video to predict, and the name of its predictions below the output folder."""

    path: Path
    name: str  # such as "street/0001", without a suffix


class PredictionRecord:
    """Which network made the predictions of a folder, and from which images."""

    def __init__(self, folder: Path, overwrite: bool = False):
        """
        Args:
            folder: of the predictions.
            overwrite: whether to begin anew.

        Raises:
            ValueError: naming a record that cannot be read.
        """
        self.path = folder / RECORD
        self.identity: dict[str, Any] | None = None
        self.sources: dict[str, Any] = {}
        self._replaced: set[str] = set()
        self._overwrite = overwrite
        try:
            self._read()
        except ValueError:
            if not overwrite:
                raise
        if overwrite:
            self._replaced |= self.sources.keys()
            self.identity, self.sources = None, {}

    def _read(self) -> bool:
        """Read the record again; whether there is one that ends as it should."""
        if not self.path.is_file():
            return False
        try:
            # A kill can leave a last line without its end.
            *lines, rest = self.path.read_text(encoding="utf-8").split("\n")
            for line in lines:
                entry = json.loads(line)
                if "identity" in entry:
                    self.identity = entry["identity"]
                    self._replaced = set(entry.get("replaced", ()))
                else:
                    self.sources[entry["name"]] = entry["source"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path}: not a record of predictions ({error}); choose another --output or "
                "add --overwrite"
            ) from error
        return not rest

    def start(self, identity: dict[str, Any]) -> None:
        """Compare the network with that of the earlier predictions, and write the record.

        Raises:
            ValueError: naming what differs from the earlier network.
        """
        intact = not self._overwrite and self._read()  # other commands may have added to it
        if self.identity is not None and (different := differences(self.identity, identity)):
            different.sort(key=lambda line: line[0].isupper())  # keys of a config come last
            raise ValueError(
                f"{self.path.parent} holds predictions of another network or config; nothing was "
                "changed:\n  " + "\n  ".join(different[:10]) + "\nChoose another --output, or add "
                "--overwrite to replace them."
            )
        if intact and self.identity is not None:
            return
        first: dict[str, Any] = {"identity": identity}
        if self._replaced:
            first["replaced"] = sorted(self._replaced)
        entries = [first]
        entries += [{"name": name, "source": state} for name, state in self.sources.items()]
        with atomic_write(self.path) as tmp_path:
            tmp_path.write_text("".join(json.dumps(x) + "\n" for x in entries), encoding="utf-8")

    def add(self, source: Source) -> None:
        """Note the image of a prediction, before any file of it is written."""
        found = self._state(source.path)
        if self.sources.get(source.name) == found:
            return
        self.sources[source.name] = found
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": source.name, "source": found}) + "\n")

    def knows(self, name: str) -> bool:
        """Whether predictions of this name were made here, even if they are being replaced."""
        return name in self.sources or name in self._replaced

    def is_from(self, source: Source) -> bool:
        """Whether the prediction of this name was made from this very image."""
        return source.name in self.sources and self.sources[source.name] == self._state(source.path)

    @staticmethod
    def _state(path: Path) -> dict[str, Any]:
        try:
            status = os.stat(path)
        except OSError:  # a broken link; reading it gives the message
            return {"path": os.path.realpath(path)}
        return {
            "path": os.path.realpath(path),
            "bytes": status.st_size,
            "modified_ns": status.st_mtime_ns,
        }


def unfinished(
    sources: Iterable[Source],
    record: PredictionRecord,
    paths: Callable[[Source], Sequence[Path]],
    overwrite: bool,
) -> list[Source]:
    """The sources whose predictions are not all there.

    Raises:
        ValueError: naming a file in the way that is not such a prediction.
    """
    remaining = []
    for source in sources:
        targets = paths(source)
        if not overwrite and not record.is_from(source):
            for target in targets:
                if os.path.lexists(target):
                    raise ValueError(f"{target} exists; choose another --output or add --overwrite")
        if overwrite or not all(target.exists() for target in targets):
            remaining.append(source)
    return remaining
