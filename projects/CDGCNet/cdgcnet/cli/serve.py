"""Serve a trained network: a page to compare predictions, and POST /predict for programs.

    %(prog)s --config-file CONFIG --weights FILE [--port 8000]
    %(prog)s --onnx FILE [--port 8000]

Open http://127.0.0.1:8000 and drop an image. Programs send the image as the body of a request:

    curl --data-binary @street.jpg 'http://127.0.0.1:8000/predict?format=labels' > labels.png

There is no login: whoever reaches the port can use it. Needs `pip install 'cdgcnet[serve]'`.
"""

import argparse
import socket
from typing import TYPE_CHECKING

from cdgcnet.cli.errors import UsageError
from cdgcnet.cli.options import add_config_arguments, integer_from, load_predictor

if TYPE_CHECKING:
    from detectron2.data.catalog import Metadata

    from cdgcnet.serve.answers import LabelModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "config of the trained model", weights=True, required=False)
    parser.add_argument(
        "--onnx",
        metavar="FILE",
        help="a file of cdgcnet export, instead of a config and weights; has no coarse prediction",
    )
    parser.add_argument("--tta", action="store_true", help="multi-scale and flip, as in TEST.AUG")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default: this machine only"
    )
    parser.add_argument(
        "--port", type=integer_from(0), default=8000, help="default: %(default)s; 0: any free one"
    )
    parser.add_argument(
        "--queue-size",
        type=integer_from(0),
        default=16,
        metavar="N",
        help="requests that may wait behind the running one; default: %(default)s",
    )
    parser.add_argument(
        "--max-upload",
        type=integer_from(1),
        default=50,
        metavar="MB",
        help="largest upload in megabytes; default: %(default)s",
    )
    parser.add_argument(
        "--timeout",
        type=integer_from(1),
        default=120,
        metavar="SECONDS",
        help="from the beginning of an upload to its answer; default: %(default)s",
    )


def listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        OSError: naming the address, if it is not free.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error}") from error


def load_model(args: argparse.Namespace) -> tuple["LabelModel", "Metadata", int]:
    """The network, names and colors of its classes, and the largest number of pixels of an image.

    Raises:
        UsageError, ValueError, OSError: naming the argument or file.
    """
    if args.onnx:
        from cdgcnet.data.decoding import MAX_PIXELS
        from cdgcnet.engine.onnx_predictor import OnnxPredictor

        exported = OnnxPredictor(args.onnx, args.tta)
        if exported.metadata is None:
            raise ValueError(
                f"{args.onnx}: names no classes; export it again with MODEL.CLASS_NAMES"
            )
        return exported, exported.metadata, MAX_PIXELS
    predictor, metadata = load_predictor(args, args.tta)
    return predictor, metadata, predictor.cfg.INPUT.MAX_PIXELS


def run(args: argparse.Namespace) -> None:
    weights_given = bool(args.config_file and args.weights)
    if bool(args.onnx) == weights_given or (args.onnx and (args.config_file or args.weights)):
        raise UsageError("expected either --config-file and --weights, or --onnx")
    try:
        import uvicorn

        from cdgcnet.serve.app import Limits, create_app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("cdgcnet", "detectron2", "torch"):
            raise
        raise ValueError(
            f"{error.name} is not installed; run `pip install 'cdgcnet[serve]'`"
        ) from error
    with listen(args.host, args.port) as server_socket:
        model, metadata, pixels = load_model(args)
        limits = Limits(args.queue_size, args.max_upload * 1_000_000, pixels, args.timeout)
        app = create_app(model, metadata, limits)
        host, port = server_socket.getsockname()[:2]
        print(f"listening on http://{host}:{port}", flush=True)
        config = uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=args.timeout,
            server_header=False,
        )
        uvicorn.Server(config).run(sockets=[server_socket])
