"""Samplers and the series store."""
