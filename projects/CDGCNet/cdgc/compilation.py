"""Keeping torch.compile out of code whose shapes change with every batch."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")


def graph_break(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a method so that torch.compile does not compile it.

    Segment lengths differ in every batch, so code compiled for one batch would be compiled again
    for the next. Unlike ``torch.compiler.disable`` used as a decorator, this does not import the
    compiler unless it is running.
    """

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(method)(*args, **kwargs)
        return method(*args, **kwargs)

    return call
