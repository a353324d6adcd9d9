"""Converts the official downloads to the layout that ``cdgcnet.data.datasets`` reads.

Reading order: ``archives`` (reads folders and archives), ``conversion`` (writes files in parallel),
``completeness`` (counts them), then one module for each dataset; ``annotations`` imports files of
labeling tools.
"""
