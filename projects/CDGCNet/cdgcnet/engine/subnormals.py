"""Subnormal numbers, those closer to 0 than 1.2e-38, as 0."""

import torch


def flush_subnormals() -> None:
    """Make the CPU take subnormal numbers for 0, in this process and in what it starts.

    A softmax over many nodes gives subnormal weights to some of them, and a CPU computes with such
    numbers up to a hundred times slower: a graph with large similarities takes 2 to 3 times as
    long (benchmarks/NOTES.md). Threads inherit the mode from the one that starts them, so call
    this before the first large tensor is computed.

    It is for commands. A library must not change a mode of the whole process, so programs that
    import this project decide for themselves (docs/predicting.md).
    """
    torch.set_flush_denormal(True)
