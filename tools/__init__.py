"""Command-line tools that are run as modules."""
