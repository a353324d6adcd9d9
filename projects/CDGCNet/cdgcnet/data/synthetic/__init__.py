"""A program that draws street scenes with their labels."""
