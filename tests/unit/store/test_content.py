from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.errors import Invalid, NotFound
from stokerd.store.content import ContentStore

NAMES = st.text("abcdé -\r\x85\u2028", min_size=1, max_size=8).filter(str.strip)
FILES = st.dictionaries(NAMES, st.binary(max_size=64), min_size=1, max_size=5)


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def read(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@settings(max_examples=30, deadline=None)
@given(files=FILES)
def test_what_was_kept_comes_back_the_same_and_has_one_name(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    root = tmp_path_factory.mktemp("content")
    store = ContentStore(root / "store")
    write(root / "a", files)
    write(root / "b", files)
    tree = store.add(root / "a")
    assert store.add(root / "b") == tree
    assert read(store.folder(tree.digest)) == files
    store.copy(tree.digest, root / "copy")
    assert read(root / "copy") == files
    assert tree.bytes == sum(map(len, files.values()))


def test_another_content_name_or_executable_bit_is_another_tree(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "store")
    write(tmp_path / "a", {"x": b"1"})
    digests = {store.add(tmp_path / "a").digest}
    (tmp_path / "a" / "x").chmod(0o755)
    digests.add(store.add(tmp_path / "a").digest)
    (tmp_path / "a" / "x").write_bytes(b"2")
    digests.add(store.add(tmp_path / "a").digest)
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    digests.add(store.add(tmp_path / "a").digest)
    assert len(digests) == 4


def test_links_to_files_are_followed_as_model_hubs_caches_need(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "store")
    write(tmp_path / "blobs", {"sha": b"weights"})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "blobs" / "sha")
    assert read(store.folder(store.add(tmp_path / "model").digest)) == {"model.safetensors": b"weights"}


def test_code_leaves_version_control_and_caches_out(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "store")
    write(tmp_path / "code", {"train.py": b"pass"})
    plain = store.add(tmp_path / "code", is_code=True)
    for ignored in (".git", "__pycache__", ".venv"):
        write(tmp_path / "code" / ignored, {"x": b""})
    assert store.add(tmp_path / "code", is_code=True) == plain


def test_what_cannot_be_kept_is_refused_with_a_sentence(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "store")
    with pytest.raises(NotFound, match="no file or folder"):
        store.add(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Invalid, match="has no files"):
        store.add(tmp_path / "empty")
    os.mkfifo(tmp_path / "empty" / "pipe")
    with pytest.raises(Invalid, match="is not a file"):
        store.add(tmp_path / "empty")
    with pytest.raises(NotFound, match="no content"):
        store.folder("0" * 64)


def test_copies_that_a_killed_daemon_left_half_done_are_cleaned_up(tmp_path: Path) -> None:
    write(tmp_path / "a", {"x": b"1"})
    tree = ContentStore(tmp_path / "store").add(tmp_path / "a")
    (tmp_path / "store" / "partial" / "half").write_bytes(b"garbage")
    again = ContentStore(tmp_path / "store")
    assert list((tmp_path / "store" / "partial").iterdir()) == []
    assert again.add(tmp_path / "a") == tree
