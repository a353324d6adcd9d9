"""The paper's experiments as rows: found, run once, recorded, rendered.

Reading order: ``rows`` (config files), ``jobs`` (rows with seeds), ``record`` (a finished run's
JSON), ``circumstances`` (commit, versions, hardware), ``cost`` (parameters and operations),
``launch`` (the training process), ``work_folder`` (what a training left), ``workshop`` (doing what
is missing), ``estimates`` (means, errors, verdicts), ``table`` (Markdown),
``picture``; ``tools/run_experiments.py`` is the command.
"""
