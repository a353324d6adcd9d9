"""A whole comparison: features, the rows that are missing, and the table."""

import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from cdgcnet.checkpoint.strict_checkpointer import check_weights_path
from cdgcnet.comparison.datasets import choose_images
from cdgcnet.comparison.feature_cache import FeatureCache, FeatureStore, Plan
from cdgcnet.comparison.features import FeatureExtractor
from cdgcnet.comparison.options import Options, Schedule
from cdgcnet.comparison.plot import write_picture
from cdgcnet.comparison.records import (
    different_settings,
    load_record,
    load_records,
    record_files,
    record_path,
)
from cdgcnet.comparison.report import format_table, make_lines, render, sensitivity, verdicts
from cdgcnet.comparison.rows import make_rows, split_heads
from cdgcnet.comparison.training import CropSampler
from cdgcnet.comparison.workers import (
    ROW_BYTES,
    Job,
    Setting,
    available_memory,
    run_jobs,
    usable_cpus,
)
from cdgcnet.config.adaptation import adapt_cfg
from cdgcnet.engine.run_metadata import run_metadata
from cdgcnet.modeling.precision import has_bfloat16
from cdgcnet.utils.io import atomic_write
from cdgcnet.utils.progress import progress


def choose_precision(choice: str, device: str) -> str:
    """ "fp32" or "bf16"; for "auto" the latter where the device multiplies it natively."""
    if choice != "auto":
        return choice
    return "bf16" if has_bfloat16(device) else "fp32"


def _open_features(
    cfg: CfgNode, schedule: Schedule, options: Options, root: Path
) -> tuple[FeatureStore, FeatureStore, dict[str, Any]]:
    """The features of training images and of images to score, and what describes them."""
    train_images, test_images = choose_images(
        cfg, options.holdout, options.train_images, options.eval_images
    )
    extractor = FeatureExtractor(cfg, options.shorter_side, schedule.precision)
    train, test = (Plan.read(images, extractor) for images in (train_images, test_images))
    cache = FeatureCache(root, extractor, options.channels)
    cache.check_space([train, test], train, print)
    train_store = cache.open(train, train, "training images")
    test_store = cache.open(test, train, "images to score")
    names = ", ".join(cfg.DATASETS.TRAIN)
    described = {
        "trained_on": names,
        "evaluated_on": (
            f"the held-out {options.holdout:g} of {names}"
            if options.holdout
            else cfg.DATASETS.TEST[0]
        ),
        "train_images": len(train_store),
        "eval_images": len(test_store),
        "shorter_side": options.shorter_side,
        "feature": extractor.feature,
        "stride": extractor.stride,
        "channels": cache.channels,
        "explained": round(cache.projection(train).explained, 4),
        "weights_file": Path(cfg.MODEL.WEIGHTS).name,
        "weights": extractor.weights,
        "train_features": train_store.folder.name,
        "eval_features": test_store.folder.name,
    }
    return train_store, test_store, described


def compare(cfg: CfgNode, schedule: Schedule, options: Options) -> int:
    """Compute what is missing, and write table and picture of what is there.

    Args:
        cfg: unfrozen; its datasets are registered.
        schedule: of every row's training.
        options: rows, images, folders.

    Returns:
        The exit code: 1 if a row failed.

    Raises:
        ValueError, OSError, MemoryError: on what can be known to be wrong before a row starts.
    """
    started = time.monotonic()
    deadline = None if options.time_budget is None else started + 60 * options.time_budget
    check_weights_path(cfg.MODEL.WEIGHTS)
    adapt_cfg(cfg)
    contexts = [context.strip() for context in options.contexts.split(",")]
    rows = make_rows(cfg, split_heads(options.heads), contexts, schedule)
    dataset = (cfg.DATASETS.TRAIN if options.holdout else cfg.DATASETS.TEST)[0]
    output = options.output or Path("output") / "compare" / dataset
    root = options.cache or output / "features"
    if options.holdout:  # choices have a table of their own
        output /= f"holdout_{options.holdout:g}"
    train, test, described = _open_features(cfg, schedule, options, root)
    CropSampler(train, schedule.crop, schedule.batch, seed=0)  # refuses too large a crop

    instrument = {**schedule.describe(), **described}
    _check_shared(output / "records", instrument)
    jobs = [
        Job(row, seed, record_path(output / "records", row, seed, instrument))
        for seed in range(1, options.seeds + 1)
        for row in rows
    ]
    missing = [job for job in jobs if not job.record.is_file()]
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    parallel = options.jobs or (1 if on_gpu else usable_cpus())
    parallel = max(1, min(parallel, len(missing)))
    setting = Setting(
        train.folder,
        test.folder,
        dataset,
        schedule,
        instrument,
        run_metadata(shlex.split(options.command)),
        threads=max(1, torch.get_num_threads() // parallel),
    )
    failures = _run_missing(missing, setting, parallel, deadline)
    done = sum(job.record.is_file() for job in jobs)
    print(f"{done} of {len(jobs)} rows are finished")
    if done:
        _write_report(output, f"Context modules on {described['evaluated_on']}")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _stop(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def _run_missing(
    missing: Sequence[Job], setting: Setting, parallel: int, deadline: float | None
) -> list[str]:
    """Train what is missing; returns a message for each row that failed."""
    if not missing:
        return []
    available, need = available_memory(), parallel * ROW_BYTES
    print(
        f"{len(missing)} rows to train, {parallel} at a time with {setting.threads} thread(s) "
        f"each; about {need / 2**30:.1f} GiB of memory"
    )
    if available is not None and need > available:
        raise MemoryError(
            f"--jobs {parallel}: the rows need about {need / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB are available; use fewer --jobs"
        )
    failures, finished = [], 0
    total = len(missing) * setting.schedule.steps
    before = signal.signal(signal.SIGTERM, _stop)  # so that it ends the rows' processes too
    try:
        # smoothing 0: the estimate of the time left goes by the average of all rows.
        with progress(desc="training", unit="step", total=total, leave=True, smoothing=0) as bar:
            for job, problem in run_jobs(missing, setting, parallel, deadline, bar.update):
                finished += 1
                name = f"{job.row.label}, seed {job.seed}"
                if problem:
                    failures.append(f"failed: {name}: {problem}")
                bar.write(f"{name}: {problem or _outcome(job)}")
    finally:
        signal.signal(signal.SIGTERM, before)
    if finished < len(missing):
        print(
            f"--time-budget: {len(missing) - finished} rows were not started; run the same command "
            "again to continue"
        )
    return failures


def _outcome(job: Job) -> str:
    record = load_record(job.record)
    return f"mIoU {record.score:.2f}, {record.cost['cpu_seconds']:.0f} CPU seconds"


def _check_shared(records: Path, instrument: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: if the folder holds rows that cannot share a table with new ones.
    """
    for path in record_files(records):
        found = load_record(path).instrument
        for key in different_settings(found, instrument):
            raise ValueError(
                f"{records} holds rows of other settings: {key} is {found.get(key)!r} in "
                f"{path.name} and {instrument.get(key)!r} now; choose another --output"
            )


def _write_report(output: Path, title: str) -> None:
    """The table of all rows in the output folder, also those of earlier commands."""
    records = load_records(output / "records")
    lines = make_lines(records)
    sees, said = sensitivity(lines)
    print(f"\n{said}\n")
    if sees:
        print("\n".join([*verdicts(lines), ""]))
    print(format_table(lines))
    text = f"# {title}\n\n{render(records)}\n![{title}](table.png)\n"
    with atomic_write(output / "table.md") as tmp_path:
        tmp_path.write_text(text, encoding="utf-8")
    write_picture(output / "table.png", title, lines)
    print(f"\nTable: {output / 'table.md'}; picture: {output / 'table.png'}")
