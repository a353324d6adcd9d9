"""Metrics, the evaluator, and the files an evaluation writes."""
