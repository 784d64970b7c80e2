"""Rollouts: steps, guards, verdicts, and the way back."""
