"""Checks every file of a dataset and reports what is wrong."""
