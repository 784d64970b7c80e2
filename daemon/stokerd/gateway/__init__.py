"""The data plane: splits, mirrors and measures traffic. Imports nothing else of the daemon."""
