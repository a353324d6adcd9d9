"""Does the graph help on this data? Context modules trained on cached features of one backbone.

Reading order: ``features`` (images to feature maps), ``feature_cache`` (the files they are kept
in), ``rows`` (what is compared), ``training`` (one row), ``workers`` (all rows), ``records`` (what
is kept), ``statistics`` and ``report`` (what it says), ``plot``, ``command``. The guide is
docs/compare.md.
"""
