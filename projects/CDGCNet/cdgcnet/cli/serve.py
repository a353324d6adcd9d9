"""Serve a trained network: a page to compare predictions, and POST /predict for programs.

    %(prog)s --config-file CONFIG --weights FILE [--port 8000]
    %(prog)s --onnx FILE [--port 8000]

Open http://127.0.0.1:8000 and drop an image. Programs send the image as the body of a request:

    curl --data-binary @street.jpg 'http://127.0.0.1:8000/predict?format=labels' > labels.png

There is no login: whoever reaches the port can use it. Needs `pip install 'cdgcnet[serve]'`.
"""

import argparse
import socket

from cdgcnet.cli.options import (
    add_model_arguments,
    check_model_arguments,
    integer_from,
    load_predictor,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
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


def run(args: argparse.Namespace) -> None:
    check_model_arguments(args)
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
        model, metadata = load_predictor(args)
        limits = Limits(
            args.queue_size, args.max_upload * 1_000_000, model.max_pixels, args.timeout
        )
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
