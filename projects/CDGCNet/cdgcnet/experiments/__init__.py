"""The paper's experiments as rows: found, run once, recorded, rendered.

Reading order: ``rows`` (config files), ``record`` (a finished run's JSON), ``cost`` (parameters and
operations), ``launch`` (the training process), ``runs`` (what is missing, and doing it), ``table``
(Markdown and picture); ``tools/run_experiments.py`` is the command.
"""
