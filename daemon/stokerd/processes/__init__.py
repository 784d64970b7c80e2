"""Supervision of processes on this machine. Knows nothing of models, devices or tables."""
