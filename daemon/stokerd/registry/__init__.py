"""Models, versions, aliases, lineage: weights that never change, under names that may move."""
