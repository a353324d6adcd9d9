"""The ``cdgcnet`` command, one module per subcommand.

A subcommand's module has a docstring, which is its help, and two functions:
``add_arguments(parser)`` and ``run(args)``, which returns the exit code (None means 0). Its name is
listed in ``COMMANDS`` of :mod:`cdgcnet.cli.commands`. The modules import only the standard library
at their top level, so that help and usage errors appear at once; ``run`` imports PyTorch and
Detectron2 when the arguments are known to be right.
"""
