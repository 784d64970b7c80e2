"""Real processes, hurt in every way that the design speaks of; `invariants` says what must hold after each."""
