"""Official downloads of the data sets, brought into the layout that ``cdgcnet.datasets`` reads.

Reading order: ``sources`` (files in folders and archives), ``jobs`` (what is made of them, in
parallel), ``counts`` (is it complete?), then one module per data set. The command is
``tools/prepare_data.py``.
"""
