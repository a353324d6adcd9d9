"""Resumes an interrupted evaluation: every finished image is kept in a file."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from cdgcnet.config.reading import differences
from cdgcnet.evaluation.evaluator import CDGCEvaluator
from cdgcnet.evaluation.image_result import ImageRecord
from cdgcnet.utils.io import atomic_write, backup_existing


def read_partial_results(folder: Path, identity: dict[str, Any]) -> list[ImageRecord]:
    """The images that an interrupted evaluation has finished.

    Args:
        folder: of the partial results; nothing is finished if it does not exist.
        identity: of the evaluation that continues.

    Raises:
        ValueError: naming what differs from the interrupted evaluation, or a broken file.
    """
    path = folder / "identity.json"
    if not path.is_file():
        return []
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: not readable ({error}); remove {folder} to evaluate all images again"
        ) from error
    different = differences(stored, identity)
    if different:
        raise ValueError(
            f"TEST.RESUME: {folder} holds partial results of another evaluation; nothing was "
            "changed:\n  " + "\n  ".join(different[:10]) + "\nContinue with the same model, data "
            "and config, or set TEST.RESUME False to start again and keep the old folder under "
            "another name."
        )
    records = []
    for part in sorted(folder.glob("*.jsonl")):
        lines = part.read_text(encoding="utf-8").split("\n")
        # The evaluation was killed while it wrote a last line without a line break.
        for number, line in enumerate(lines[:-1], start=1):
            try:
                records.append(ImageRecord.from_json(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(
                    f"{part}, line {number}: not the result of an image ({error}); remove that "
                    "line to evaluate the image again"
                ) from error
    return records


def file_states(entry: dict) -> list[list[int]]:
    """Size and time of the last change of the files of a dataset's entry that are there."""
    states = []
    for key in ("file_name", "sem_seg_file_name"):
        with suppress(OSError):  # reading it gives the message
            status = os.stat(entry.get(key, ""))
            states.append([status.st_size, status.st_mtime_ns])
    return states


class PartialResults:
    """Appends finished images, one per line, to a file that only this process writes."""

    def __init__(self, folder: Path, rank: int):
        """
        Args:
            folder: of the partial results.
            rank: of this process.
        """
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        while (path := folder / f"{number:03}.{rank}.jsonl").exists():
            number += 1
        self.path = path
        path.touch()

    def append(self, record: ImageRecord) -> None:
        """Keep one image.

        Raises:
            OSError: naming the file, if it cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(record.to_json() + "\n")
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot keep {record.file_name} ({error.strerror}); free some space and run the "
                "same command again with TEST.RESUME True",
                str(self.path),
            ) from error


class ResumableEvaluator(DatasetEvaluator):
    """Wraps an evaluation so that it can be interrupted and continued with the missing images.

    Only :class:`CDGCEvaluator` can be restored from its records; other evaluators must not
    keep results of their own. An image is predicted again if it or its labels have changed.

    Attributes:
        finished: file names of the images that need no prediction any more.
    """

    def __init__(
        self,
        evaluator: DatasetEvaluator,
        counter: CDGCEvaluator,
        compute_identity: Callable[[], dict[str, Any]],
        dicts: Sequence[dict],
    ):
        """
        Args:
            evaluator: holds ``counter``.
            counter: with an output folder. Unfinished results in it are continued; anything else
                there is moved aside.
            compute_identity: what must be the same for an evaluation to be continued; called on
                the main process.
            dicts: of the dataset.

        Raises:
            ValueError: on all processes, if the partial results belong to another evaluation.
        """
        assert counter.output_dir is not None
        self.evaluator = evaluator
        self.counter = counter
        self.folder = counter.output_dir / "finished"
        self._restored: list[ImageRecord] = []
        self._files = {entry["file_name"]: file_states(entry) for entry in dicts}
        problem = None
        if comm.is_main_process():
            try:
                self._start(compute_identity())
            except (ValueError, OSError) as error:
                problem = str(error)
        names = [record.file_name for record in self._restored]
        # Every process must stop with the main one, and skip the same images.
        problem, names = comm.all_gather((problem, names))[0]
        if problem:
            raise ValueError(problem)
        self.finished: Collection[str] = frozenset(names)
        self._partial = PartialResults(self.folder, comm.get_rank())

    def _start(self, identity: dict[str, Any]) -> None:
        if self.folder.is_dir():
            found = read_partial_results(self.folder, identity)
            # Later lines are those of images that were predicted again.
            latest = {record.file_name: record for record in found}.values()
            self._restored = [x for x in latest if x.files == self._files.get(x.file_name)]
            if changed := len(latest) - len(self._restored):
                logging.getLogger(__name__).warning(
                    f"TEST.RESUME: {changed} finished image(s) or their labels have changed since "
                    "and are evaluated again"
                )
        else:
            backup_existing(self.folder.parent)
        with atomic_write(self.folder / "identity.json") as tmp_path:
            tmp_path.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")

    def reset(self) -> None:
        self.evaluator.reset()
        self.counter.restore(self._restored)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        before = len(self.counter.records)
        self.evaluator.process(inputs, outputs)
        for record in self.counter.records[before:]:
            record.files = self._files.get(record.file_name, [])
            self._partial.append(record)

    def evaluate(self) -> Any:
        return self.evaluator.evaluate()

    def remove_partial_results(self) -> None:
        """Remove what only an unfinished evaluation needs."""
        if comm.is_main_process():
            shutil.rmtree(self.folder)
