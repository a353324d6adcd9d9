"""What torch.compile must leave alone."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")


def graph_break(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Keep torch.compile out of a method: one stated graph break.

    The lengths of the segments differ in every batch; code made for one batch's would be made
    again for the next. Unlike ``torch.compiler.disable`` as a decorator this imports no compiler
    unless one is at work.
    """

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(method)(*args, **kwargs)
        return method(*args, **kwargs)

    return call
