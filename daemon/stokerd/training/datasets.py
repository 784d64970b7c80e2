"""Snapshots of data: immutable, numbered, named by what is in them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from stoker.errors import Invalid, NotFound
from stoker.types.training import Dataset, DatasetVersion
from stokerd.store.content import ContentStore
from stokerd.store.store import Query, Store, Transaction


class Datasets:
    """What the API does with datasets."""

    def __init__(self, store: Store, content: ContentStore) -> None:
        self._store = store
        self._content = content

    async def snapshot(self, name: str, path: Path) -> DatasetVersion:
        """Keep the folder or file at *path* as the next version of dataset *name*; makes the dataset if it is new.

        Content that some version already has gives that version back. Raises as `ContentStore.add` does.
        """
        if not path.is_absolute():
            raise Invalid(f"the path {path} is relative.", "Give an absolute one.", code="relative-path")
        tree = await asyncio.to_thread(self._content.add, path)

        def save(tx: Transaction) -> DatasetVersion:
            known = tx.all(DatasetVersion, dataset=name, digest=tree.digest)
            if known:
                return known[0]
            dataset = tx.find(Dataset, name) or Dataset(name=name)
            dataset.latest += 1
            version = DatasetVersion(
                name=f"{name}@{dataset.latest}",
                dataset=name,
                number=dataset.latest,
                digest=tree.digest,
                files=tree.files,
                bytes=tree.bytes,
                source=str(path),
            )
            tx.save(dataset)
            tx.save(
                version, "DatasetVersionCreated", f"{version.name}: {tree.files} file(s) of {path}.", digest=tree.digest
            )
            return version

        return await self._store.write(save)


def resolve_dataset(query: Query, reference: str) -> DatasetVersion:
    """The version that ``name`` (its latest) or ``name@number`` means. Raises `NotFound`."""
    name, _, number = reference.partition("@")
    if number:
        return query.get(DatasetVersion, reference)
    dataset = query.find(Dataset, name)
    if dataset is None or not dataset.latest:
        raise NotFound(
            f"there is no dataset named {name!r}.", f"Make a version of it with `stoker snapshot {name} PATH`."
        )
    return query.get(DatasetVersion, f"{name}@{dataset.latest}")
