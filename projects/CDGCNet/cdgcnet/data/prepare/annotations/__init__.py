"""Imports annotation files of other tools as label PNGs and a class list for the own-data config.

Reading order: ``shapes`` (what an annotation is, and how it is drawn), ``class_table`` (names to
class ids), one module for each format, ``command`` (``cdgcnet prepare import``).
"""
