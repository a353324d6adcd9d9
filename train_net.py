#!/usr/bin/env python
"""Train or evaluate CDGCNet.

python train_net.py --config-file configs/… [--num-gpus N] [KEY VALUE …]
python train_net.py --config-file configs/… --eval-only MODEL.WEIGHTS FILE [TEST.AUG.ENABLED True]
python train_net.py --config-file configs/… --resume
"""

import argparse
import logging
import sys

import torch
from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm

from cdgcnet.engine.defaults import run, setup


def main(args: argparse.Namespace) -> dict:
    try:
        cfg = setup(args)
        return run(cfg, eval_only=args.eval_only, resume=args.resume)
    except (ValueError, OSError, MemoryError) as error:
        # The user's to mend, and the message says how; the traceback is for the log's level DEBUG.
        logging.getLogger("cdgcnet").debug("stopped by", exc_info=True)
        sys.exit(f"train_net.py: error: {error}" if comm.is_main_process() else 1)


def check_processes(num_gpus: int) -> None:
    """Detectron2 starts one process per GPU; refuse more than there are."""
    available = torch.cuda.device_count()
    if num_gpus > max(available, 1):
        sys.exit(f"train_net.py: error: --num-gpus {num_gpus}, but {available} are available")


if __name__ == "__main__":
    arguments = default_argument_parser(epilog=__doc__).parse_args()
    check_processes(arguments.num_gpus)
    try:
        launch(
            main,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(arguments,),
        )
    except torch.multiprocessing.ProcessExitedException as error:
        sys.exit(error.exit_code)  # the process has said why
