"""Params, metrics and artifacts that runs report, read from the file that each run appends to."""
