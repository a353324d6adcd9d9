"""Does the graph help on this data? Context modules trained on cached features of one backbone.

Reading order: ``features`` (images to feature maps), ``feature_cache`` (the files they are kept
in), ``rows`` (what is compared), ``training`` (one row), ``workers`` (all rows), ``records`` (what
is kept), ``report`` and ``plot`` (what it says), ``comparison`` (all of it). The command is
``cdgcnet compare``, the guide docs/compare.md.
"""
