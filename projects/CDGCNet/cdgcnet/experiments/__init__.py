"""Runs the paper's experiments and renders their tables. Part of a checkout, not of the wheel.

Reading order: ``rows`` (config files), ``jobs`` (rows with seeds), ``record`` (the JSON of a
finished run), ``model_cost`` (parameters and multiply-adds), ``process`` (the training process),
``run_folder`` (what a training run left), ``runner`` (runs what is missing), ``table`` (Markdown),
``plot`` (the same table as a picture), ``render`` (records to tables).
"""

import cdgcnet.modeling  # noqa: F401  registers the network, which configs name
