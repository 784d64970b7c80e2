"""Alembic migrations of state.db."""
