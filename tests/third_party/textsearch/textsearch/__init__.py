"""Searching transformers that tell which module a line of Python's documentation comes from."""
