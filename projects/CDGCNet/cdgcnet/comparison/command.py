"""Find out whether the class-wise graph helps on your data.

    %(prog)s --config-file CONFIG --weights BACKBONE --output DIR

The features of a frozen backbone are computed once and kept on disk; small heads with different
context modules are trained on them, minutes each on one CPU core. DIR gets the records, table.md
and table.png. Run the same command again to continue: finished rows are not repeated.
docs/compare.md tells how to read the table.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdgcnet.comparison.schedule import Schedule

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from cdgcnet.comparison.workers import Job, Setting

HEADS = "plain,pixelwise,aspp,non_local,danet,ocr,psp,graph"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``cdgcnet compare``."""
    default = Schedule()
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="dataset, backbone and graph to compare")
    add("--weights", default="", metavar="FILE", help="backbone weights (MODEL.WEIGHTS)")
    add("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides of the config")
    add("--output", type=Path, metavar="DIR", help="default: output/compare/DATASET")
    add("--cache", type=Path, metavar="DIR", help="of the features; default: OUTPUT/features")
    rows = parser.add_argument_group("rows")
    add = rows.add_argument
    add(
        "--heads",
        default=HEADS,
        metavar="LIST",
        help="graph:EDGES=uniform,FUSION=sum sets keys below MODEL.CDGC (default: %(default)s)",
    )
    add("--context", default="none,aspp", metavar="LIST", help="default: %(default)s")
    add("--seeds", type=int, default=3, metavar="N", help="seeds 1 to N (default: %(default)s)")
    images = parser.add_argument_group("images and features")
    add = images.add_argument
    add("--holdout", type=float, default=0.0, metavar="SHARE", help="score this part of the "
        "training images instead of DATASETS.TEST, for choices before the final rows")  # fmt: skip
    add("--train-images", type=int, default=1500, metavar="N", help="at most; 0: all (%(default)s)")
    add("--eval-images", type=int, default=0, metavar="N", help="at most; 0: all (%(default)s)")
    add("--shorter-side", type=int, default=160, metavar="PIXELS", help="%(default)s")
    add("--channels", type=int, default=192, metavar="C", help="principal components kept of the "
        "backbone's features (%(default)s)")  # fmt: skip
    training = parser.add_argument_group("training of a head")
    add = training.add_argument
    add("--steps", type=int, default=default.steps, help="%(default)s")
    add("--batch", type=int, default=default.batch, help="crops per step (%(default)s)")
    add("--crop", type=int, default=default.crop, help="side in nodes (%(default)s)")
    add("--width", type=int, default=default.width, help="channels of a head (%(default)s)")
    add("--lr", type=float, default=default.learning_rate, help="of AdamW (%(default)s)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="auto: bf16 where the CPU multiplies it natively, and on CUDA")  # fmt: skip
    running = parser.add_argument_group("running")
    add = running.add_argument
    add("--jobs", type=int, default=0, metavar="N", help="rows side by side; default: one per CPU")
    add("--time-budget", type=float, metavar="MINUTES", help="start no row that would end later")
    add("--render", type=Path, metavar="DIR", help="only write the table of the records in DIR")
    add("--into", type=Path, metavar="FILE", help="with --render: the Markdown file to write it "
        "into, between <!-- compare NAME --> and its end marker; NAME is DIR's")  # fmt: skip


def _check_numbers(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: naming the option.
    """
    if not 0 <= args.holdout < 1:
        raise ValueError(f"--holdout is {args.holdout:g}; expected a share, 0 to below 1")
    for name in ("seeds", "shorter_side", "channels", "steps", "batch", "crop", "width", "lr"):
        if getattr(args, name) <= 0:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is {getattr(args, name)}; expected more than 0")
    for name in ("train_images", "eval_images", "jobs"):
        if getattr(args, name) < 0:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is {getattr(args, name)}; expected 0 or more")
    if args.time_budget is not None and args.time_budget <= 0:
        raise ValueError(f"--time-budget is {args.time_budget:g}; expected minutes above 0")


def _precision(choice: str, device: str) -> str:
    import torch

    if choice != "auto":
        return choice
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    native = torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return "bf16" if native else "fp32"


def run(args: argparse.Namespace) -> int:
    """Compare, or only render; returns the exit code.

    Raises:
        ValueError, OSError, MemoryError: on anything that can be known to be wrong beforehand.
    """
    if args.render is not None:
        return _render(args)
    if args.into is not None:
        raise ValueError("--into needs --render DIR")
    if not args.config_file:
        raise ValueError("--config-file FILE is missing; it names dataset and backbone")
    _check_numbers(args)
    cfg, schedule = _configure(args)
    return _compare(args, cfg, schedule)


def _configure(args: argparse.Namespace) -> "tuple[CfgNode, Schedule]":
    from cdgcnet.checkpoint.strict_checkpointer import check_weights_path
    from cdgcnet.config.defaults import load_cfg
    from cdgcnet.config.validation import adapt_cfg
    from cdgcnet.data.datasets import register_all, register_folders

    weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
    cfg = load_cfg(args.config_file, [*args.opts, *weights])
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("--weights FILE is missing: features of an untrained backbone say nothing")
    check_weights_path(cfg.MODEL.WEIGHTS)
    adapt_cfg(cfg)
    register_all()
    register_folders(cfg)
    schedule = Schedule(
        steps=args.steps,
        batch=args.batch,
        crop=args.crop,
        learning_rate=args.lr,
        width=args.width,
        precision=_precision(args.precision, cfg.MODEL.DEVICE),
    )
    return cfg, schedule


def _compare(args: argparse.Namespace, cfg: "CfgNode", schedule: Schedule) -> int:
    import torch

    from cdgcnet.comparison.datasets import choose_images
    from cdgcnet.comparison.feature_cache import FeatureCache, Plan
    from cdgcnet.comparison.features import FeatureExtractor
    from cdgcnet.comparison.records import record_path
    from cdgcnet.comparison.rows import make_rows, split_heads
    from cdgcnet.comparison.training import CropSampler
    from cdgcnet.comparison.workers import Job, Setting, usable_cpus
    from cdgcnet.experiments.run_metadata import circumstances as run_metadata

    deadline = None if args.time_budget is None else time.monotonic() + 60 * args.time_budget
    contexts = [c.strip() for c in args.context.split(",")]
    rows = make_rows(cfg, split_heads(args.heads), contexts, schedule)
    train_images, test_images = choose_images(
        cfg, args.holdout, args.train_images, args.eval_images
    )
    dataset = cfg.DATASETS.TRAIN[0] if args.holdout else cfg.DATASETS.TEST[0]
    output = args.output or Path("output") / "compare" / dataset
    cache_dir = args.cache or output / "features"

    extractor = FeatureExtractor(cfg, args.shorter_side, schedule.precision)
    train, test = (Plan.read(images, extractor) for images in (train_images, test_images))
    cache = FeatureCache(cache_dir, extractor, args.channels)
    cache.check_space([train, test], train, print)
    train_store = cache.open(train, train, "training images")
    test_store = cache.open(test, train, "images to score")
    CropSampler(train_store, schedule.crop, schedule.batch, seed=0)  # refuses too large a crop

    names = ", ".join(cfg.DATASETS.TRAIN)
    instrument: dict[str, Any] = {
        **schedule.describe(),
        "trained_on": names,
        "evaluated_on": f"the held-out {args.holdout:g} of {names}" if args.holdout else dataset,
        "train_images": len(train_store),
        "eval_images": len(test_store),
        "shorter_side": args.shorter_side,
        "feature": extractor.feature,
        "stride": extractor.stride,
        "channels": cache.channels,
        "explained": round(cache.projection(train).explained, 4),
        "weights_file": Path(cfg.MODEL.WEIGHTS).name,
        "weights": extractor.weights,
        "train_features": train_store.folder.name,
        "eval_features": test_store.folder.name,
    }
    records = output / "records"
    jobs = [
        Job(row, seed, record_path(records, row, seed, instrument))
        for seed in range(1, args.seeds + 1)
        for row in rows
    ]
    missing = [job for job in jobs if not job.record.is_file()]
    parallel = args.jobs or (1 if cfg.MODEL.DEVICE.startswith("cuda") else usable_cpus())
    parallel = max(1, min(parallel, len(missing)))
    setting = Setting(
        train_store.folder,
        test_store.folder,
        dataset,
        schedule,
        instrument,
        run_metadata(["cdgcnet", "compare", *sys.argv[1:]]),
        threads=max(1, torch.get_num_threads() // parallel),
    )
    del extractor, cache
    failures = _run_missing(missing, setting, parallel, deadline)
    done = [job.record for job in jobs if job.record.is_file()]
    print(f"{len(done)} of {len(jobs)} rows are finished")
    if done:
        _write_report(done, output, f"{names}: context modules on frozen features")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _run_missing(
    missing: "list[Job]", setting: "Setting", parallel: int, deadline: float | None
) -> list[str]:
    """Train what is missing; returns a message for each row that failed."""
    from tqdm import tqdm

    from cdgcnet.comparison.workers import ROW_BYTES, available_memory, run_jobs

    if not missing:
        return []
    available, need = available_memory(), parallel * ROW_BYTES
    if available is not None and need > available:
        raise MemoryError(
            f"--jobs {parallel}: the rows need about {need / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB are available; use fewer --jobs"
        )
    print(f"{len(missing)} rows to train, {parallel} at a time, {setting.threads} thread(s) each")
    failures, finished = [], 0
    pause = 1 if sys.stderr.isatty() else 30  # a log file need not hold every step
    total = len(missing) * setting.schedule.steps
    with tqdm(total=total, unit="step", smoothing=0, mininterval=pause) as bar:
        for job, problem in run_jobs(missing, setting, parallel, deadline, bar.update):
            finished += 1
            name = f"{job.row.label}, seed {job.seed}"
            if problem:
                failures.append(f"failed: {name}: {problem}")
            bar.write(f"{name}: {problem or _outcome(job)}")
    if finished < len(missing):
        print(
            f"--time-budget is used up with {len(missing) - finished} rows to go; run the same "
            "command again to continue"
        )
    return failures


def _outcome(job: "Job") -> str:
    from cdgcnet.comparison.records import load_record

    record = load_record(job.record)
    return f"mIoU {record.score:.2f}, {record.cost['cpu_seconds']:.0f} CPU seconds"


def _write_report(paths: list[Path], output: Path, title: str) -> None:
    from cdgcnet.comparison.plot import write_picture
    from cdgcnet.comparison.records import load_record
    from cdgcnet.comparison.report import format_table, make_lines, render, sensitivity, verdicts
    from cdgcnet.utils.io import atomic_write

    records = [load_record(path) for path in paths]
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


def _render(args: argparse.Namespace) -> int:
    from cdgcnet.comparison.records import load_records
    from cdgcnet.comparison.report import render, write_between

    text = render(load_records(args.render))
    if args.into is None:
        print(text)
    else:
        write_between(args.into, args.render.name, text)
    return 0
