"""Converts the official downloads to the layout that ``cdgcnet.data.datasets`` reads.

Reading order: ``archives`` (reads folders and archives), ``conversion`` (writes the files, in
parallel), ``completeness`` (counts them), then one module per dataset.
"""
