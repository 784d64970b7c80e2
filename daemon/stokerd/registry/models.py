"""The model registry."""

from __future__ import annotations

import asyncio
from pathlib import Path

from stoker.errors import Invalid, NotFound
from stoker.types.base import Name
from stoker.types.registry import Lineage, Model, Version
from stokerd.store.content import ContentStore
from stokerd.store.store import Query, Store, Transaction


class Registry:
    """What the API and runs do with models."""

    def __init__(self, store: Store, content: ContentStore) -> None:
        self._store = store
        self._content = content

    async def register(self, model: str, path: Path, lineage: Lineage, aliases: list[Name]) -> Version:
        """Keep the weights at *path* as the next version of *model*, and let *aliases* point to it.

        Weights that some version of the model already has give that version back, its lineage as it was. Raises
        `NotFound` for an unknown model, and as `ContentStore.add` does.
        """
        if not path.is_absolute():
            raise Invalid(f"the path {path} is relative.", "Give an absolute one.", code="relative-path")
        await self._store.read(lambda q: q.get(Model, model))  # before a large copy is made for nothing
        tree = await asyncio.to_thread(self._content.add, path)
        folder = await asyncio.to_thread(self._content.folder, tree.digest)

        def save(tx: Transaction) -> Version:
            known = tx.all(Version, model=model, digest=tree.digest)
            found = tx.get(Model, model)
            if known:
                version = known[0]
            else:
                found.latest += 1
                version = Version(
                    name=f"{model}@{found.latest}",
                    model=model,
                    number=found.latest,
                    digest=tree.digest,
                    files=tree.files,
                    bytes=tree.bytes,
                    folder=str(folder),
                    lineage=lineage.model_copy(update={"source": lineage.source or str(path)}),
                )
                tx.save(found)
                origin = f"run {lineage.run}" if lineage.run else str(path)
                tx.save(version, "VersionRegistered", f"{version.name}, from {origin}.", digest=tree.digest)
            for alias in aliases:
                _point(tx, found, alias, version.number)
            return version

        return await self._store.write(save)

    async def set_alias(self, model: str, alias: str, number: int) -> Model:
        """Let *alias* of *model* mean version *number*. Raises `NotFound`."""

        def save(tx: Transaction) -> Model:
            found = tx.get(Model, model)
            tx.get(Version, f"{model}@{number}")
            _point(tx, found, alias, number)
            return found

        return await self._store.write(save)

    async def delete_alias(self, model: str, alias: str) -> Model:
        """Take *alias* away. Raises `NotFound`."""

        def save(tx: Transaction) -> Model:
            found = tx.get(Model, model)
            if alias not in found.aliases:
                raise NotFound(
                    f"model {model} has no alias {alias!r}.", f"It has: {', '.join(found.aliases) or 'none'}."
                )
            del found.aliases[alias]
            tx.save(found, "AliasDeleted", f"{model}@{alias} is gone.")
            return found

        return await self._store.write(save)


def _point(tx: Transaction, model: Model, alias: str, number: int) -> None:
    before = model.aliases.get(alias)
    if before == number:
        return
    if alias.isdigit():
        raise Invalid(f"an alias can't be a number, as {alias!r} is.", "Versions have numbers; give it a name.")
    model.aliases[alias] = number
    was = "" if before is None else f" (before: {before})"
    tx.save(model, "AliasMoved", f"{model.name}@{alias} is version {number} now{was}.", before=before, after=number)


def resolve_version(query: Query, model: str, reference: int | str) -> Version:
    """The version that a number or alias of *model* means. Raises `NotFound`, saying what there is."""
    found = query.get(Model, model)
    if isinstance(reference, str) and not reference.isdigit():
        if reference not in found.aliases:
            raise NotFound(
                f"model {model} has no alias {reference!r}.",
                f"Its aliases: {', '.join(sorted(found.aliases)) or 'none'}; its newest version: {found.latest}.",
            )
        reference = found.aliases[reference]
    version = query.find(Version, f"{model}@{int(reference)}")
    if version is None:
        raise NotFound(
            f"model {model} has no version {reference}.",
            f"Its newest version is {found.latest}." if found.latest else "Register one with `stoker register`.",
        )
    return version


def resolve_reference(query: Query, reference: str) -> Version:
    """The version that ``model@number`` or ``model@alias`` means. Raises `NotFound` or `Invalid`."""
    model, at, version = reference.partition("@")
    if not at:
        raise Invalid(f"{reference!r} names no version.", f"Write {model}@NUMBER or {model}@ALIAS.", code="no-version")
    return resolve_version(query, model, version)
