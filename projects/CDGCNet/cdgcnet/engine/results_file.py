"""``results.json``, whole at any time."""

import logging
from collections.abc import Sequence
from pathlib import Path

from cdgcnet.evaluation.report import COLUMNS, format_table, write_results
from cdgcnet.utils.io import backup_existing


class ResultsFile:
    """Collects the scores of a run in a ``results.json`` that is complete at any time.

    The file of an earlier evaluation is kept under another name.
    """

    def __init__(self, path: Path, datasets: Sequence[str]):
        """
        Args:
            path: of the file.
            datasets: whose scores are expected.
        """
        self.path = path
        self.datasets = datasets
        self._results: dict[str, dict] = {}

    def add(self, dataset: str, results: dict) -> None:
        """Add scores of a dataset by task, and write the file."""
        if not self._results:
            backup_existing(self.path)
        self._results.setdefault(dataset, {}).update(results)
        write_results(self.path, self.content())

    def content(self) -> dict:
        """Scores by task, or by dataset and task if several datasets are expected."""
        if len(self.datasets) == 1:
            return self._results.get(self.datasets[0], {})
        return self._results

    def log(self) -> None:
        """Log the IoU of every class, and where the file is."""
        logger = logging.getLogger(__name__)
        for dataset, results in self._results.items():
            columns = {task: title for task, title in COLUMNS.items() if task in results}
            if columns:
                table = format_table(results, columns)
                logger.info(f"Final IoU in percent on {dataset}:\n{table}")
        if self._results:
            logger.info(f"Results: {self.path}")
