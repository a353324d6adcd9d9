"""Finished images of an evaluation, kept so that it can be interrupted and gone on with."""

import json
from pathlib import Path
from typing import IO, Any

from cdgcnet.config.identity import differences
from cdgcnet.evaluation.image_result import ImageRecord
from cdgcnet.utils.io import atomic_write


def read_partial_results(folder: Path, fingerprint: dict[str, Any]) -> list[ImageRecord]:
    """The images that an interrupted evaluation has finished.

    Args:
        folder: of the journal; without one nothing is finished.
        fingerprint: of the evaluation that goes on.

    Raises:
        ValueError: naming what differs from the evaluation that was interrupted, or a broken file.
    """
    path = folder / "fingerprint.json"
    if not path.is_file():
        return []
    different = differences(json.loads(path.read_text(encoding="utf-8")), fingerprint)
    if different:
        raise ValueError(
            f"TEST.RESUME: {folder} holds the images of another evaluation; nothing was changed:"
            "\n  " + "\n  ".join(different[:10]) + "\nGo on with the same model, data and config; "
            "or set TEST.RESUME False, which starts anew and keeps what is there beside."
        )
    records = []
    for part in sorted(folder.glob("*.jsonl")):
        lines = part.read_text(encoding="utf-8").split("\n")
        # A line without its end was being written when the evaluation was killed.
        for number, line in enumerate(lines[:-1], start=1):
            try:
                records.append(ImageRecord.from_json(line))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{part}, line {number}: not a kept image ({error}); remove that line"
                ) from error
    return records


class PartialResults:
    """Appends finished images, one line each, to a file of this process and start alone."""

    def __init__(self, folder: Path, fingerprint: dict[str, Any], rank: int):
        """
        Args:
            folder: of the journal.
            fingerprint: stored by the process of rank 0.
            rank: of this process.
        """
        if rank == 0:
            with atomic_write(folder / "fingerprint.json") as tmp_path:
                tmp_path.write_text(json.dumps(fingerprint, indent=2) + "\n", encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        while (path := folder / f"{number:03}.{rank}.jsonl").exists():
            number += 1
        self.path = path
        self._file: IO[str] = path.open("x", encoding="utf-8")

    def append(self, record: ImageRecord) -> None:
        """Keep one image.

        Raises:
            OSError: naming the file, if it cannot be written.
        """
        try:
            self._file.write(record.to_json() + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot keep {record.file_name} ({error.strerror}); free some space and run the "
                "same command again with TEST.RESUME True",
                str(self.path),
            ) from error

    def close(self) -> None:
        self._file.close()
