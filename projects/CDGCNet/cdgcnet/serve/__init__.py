"""A web server for one network: a page to compare predictions, and an interface for programs."""
