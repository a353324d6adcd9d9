"""Evaluations and comparisons of runs as HTML pages that need no other file and no network."""
