"""What applying a model does, inside the transaction that it is given."""

from __future__ import annotations

from stoker.types.registry import Model, ModelSpec
from stokerd.store.store import Transaction


def apply_model(tx: Transaction, spec: ModelSpec) -> None:
    """Keep *spec*; versions and aliases stay."""
    model = tx.find(Model, spec.name)
    if model is None:
        tx.save(Model(name=spec.name, spec=spec), "ModelCreated", f"model {spec.name} was created.")
    elif model.spec != spec:
        model.spec = spec
        tx.save(model, "ModelChanged", f"model {spec.name} was changed.")
