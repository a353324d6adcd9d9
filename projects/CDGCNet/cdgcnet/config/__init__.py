"""Configuration: defaults, validation, and the keys that identify a run."""
