"""Spec files: several YAML documents, each with its ``kind``, read into specs or refused with every problem named.

``load_specs`` is for `stoker apply`, ``load_document`` for a settings file. Both raise only `InvalidSpec`, whose
``details["problems"]`` is a list of ``{file, line, field, message}`` over all documents.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from stoker.documents import MAX_BYTES, Document, Problem, read_documents
from stoker.errors import Invalid, InvalidSpec, NotFound, Unavailable
from stoker.explain import explain, field_name, nearest, shown
from stoker.types.apply import SPEC_TYPES, AnySpec
from stoker.types.registry import ModelSpec
from stoker.types.rollouts import RolloutSpec
from stoker.types.serving import CommandEngine, DeploymentSpec, VllmEngine
from stoker.types.training import JobSpec, ScheduleSpec

T = TypeVar("T")
_Spec = JobSpec | ScheduleSpec | ModelSpec | DeploymentSpec | RolloutSpec
_KINDS = ", ".join(SPEC_TYPES)


@dataclass(frozen=True, slots=True)
class Located:
    """A spec with the document it stands in, so that later refusals can name its lines too."""

    spec: _Spec
    document: Document


def load_specs(text: str, file: str, base: Path | None) -> list[AnySpec]:
    """Read all specs of *text*, the contents of *file*; paths in them become absolute, relative ones from *base* on.

    *base* None means the current directory. Raises `InvalidSpec` with all problems of all documents.
    """
    located, problems = locate_specs(text, file, base)
    if problems:
        raise refusal(problems)
    return [x.spec for x in located]


def locate_specs(text: str, file: str, base: Path | None) -> tuple[list[Located], list[Problem]]:
    """As `load_specs`, but gives the sound specs with their places, and the problems, so that files can be joined."""
    documents, problems = read_documents(text, file)
    located = []
    for document in documents:
        spec, found = _read_spec(document)
        problems = [*problems, *found]
        if spec is not None:
            located.append(Located(_with_absolute_paths(spec, base or Path.cwd()), document))
    if not documents and not problems:
        problems = [Problem(file, 1, "", f"no spec in it: expected a document with kind: {_KINDS}")]
    problems += twice(located)
    return located, sorted(problems, key=lambda p: p.line)


def twice(located: Iterable[Located]) -> list[Problem]:
    """A problem for each spec whose kind and name an earlier one has."""
    first: dict[tuple[str, str], Document] = {}
    problems = []
    for item in located:
        earlier = first.setdefault((item.spec.kind, item.spec.name), item.document)
        if earlier is not item.document:
            message = f"{item.spec.kind} {item.spec.name} is given twice (first in {earlier.file}:{earlier.line})"
            line = item.document.line_of(("name",))
            problems.append(Problem(item.document.file, line, f"{item.spec.kind}.name", message))
    return problems


def refusal(problems: Sequence[Problem]) -> InvalidSpec:
    """The one error that tells of all *problems*, a line each."""
    return InvalidSpec("\n".join(map(str, problems)), problems=[p.as_dict() for p in problems])


def load_document(text: str, file: str, type_adapter: TypeAdapter[T]) -> T:
    """Read one YAML document of another kind, e.g. stoker.yaml; an empty one counts as ``{}``.

    Fields are named without a prefix. Raises `InvalidSpec`.
    """
    documents, problems = read_documents(text, file)
    if len(documents) > 1:
        problems = [*problems, Problem(file, documents[1].line, "", "expected one document, not several (`---`)")]
    document = documents[0] if documents else Document(file, 1, {})
    problems = [*problems, *_flaws(document, "")]
    if problems:
        raise refusal(problems)
    try:
        return type_adapter.validate_python(document.value)
    except ValidationError as error:
        annotation = type_adapter._type  # no public name: only with it can unknown fields be told from known ones
        raise refusal(explain(error, document, annotation, "")) from error


def read_file(path: Path) -> tuple[str, Path]:
    """The text of a spec file, and the folder that relative paths in it start from.

    Raises `NotFound`, `Invalid` (a folder, too large, not UTF-8) or `Unavailable` (may not be read).
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        # What `<(…)` names, a pipe under /dev/fd, has no folder that anybody means.
        base = path.absolute().parent if path.is_file() else Path.cwd()
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}.", "Name a spec file, or `-` for standard input.") from error
    except IsADirectoryError as error:
        raise Invalid(f"{path} is a folder.", "Name the spec files in it, e.g. with -f for each.") from error
    except OSError as error:
        raise Unavailable(f"{path} can't be read: {error.strerror or error}.", "See its permissions.") from error
    return decode(data, str(path)), base


def decode(data: bytes, file: str) -> str:
    """Text of a spec file's bytes, UTF-8 with or without a byte order mark. Raises `InvalidSpec`."""
    if len(data) > MAX_BYTES:
        raise refusal([Problem(file, 1, "", f"the file is larger than {MAX_BYTES >> 20} MiB: split it")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8: byte 0x{data[error.start]:02x} can't be read as text"
        raise refusal([Problem(file, line, "", message)]) from error


def _read_spec(document: Document) -> tuple[_Spec | None, list[Problem]]:
    value = document.value
    if not isinstance(value, dict):
        if document.flaws:
            return None, _flaws(document, "")
        message = f"expected a mapping with kind: {_KINDS} (got {shown(value)})"
        return None, [Problem(document.file, document.line, "", message)]
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in SPEC_TYPES:
        flaws = _flaws(document, "")
        if "kind" not in value:
            message = f"missing: expected one of {_KINDS}"
        else:
            close = nearest(kind, [*SPEC_TYPES]) if isinstance(kind, str) else ""
            message = f"expected one of {_KINDS} (got {shown(kind)}{close})"
        return None, [*flaws, Problem(document.file, document.line_of(("kind",)), "kind", message)]
    flaws = _flaws(document, kind)
    try:
        spec = SPEC_TYPES[kind].model_validate(value)
    except ValidationError as error:
        told = {p.field for p in flaws}  # a value that is broken as YAML is not blamed for its type too
        return None, [*flaws, *(p for p in explain(error, document, SPEC_TYPES[kind], kind) if p.field not in told)]
    return (None if flaws else spec), flaws


def _flaws(document: Document, prefix: str) -> list[Problem]:
    return [Problem(document.file, line, field_name(prefix, where), text) for where, line, text in document.flaws]


def _with_absolute_paths(spec: _Spec, base: Path) -> _Spec:
    """The daemon runs elsewhere: what a spec says relative to its file is made absolute here."""
    changes: dict[str, Any] = {}
    match spec:
        case JobSpec():
            changes = {
                "code": spec.code if spec.code is None else _absolute(spec.code, base),
                "python": _program(spec.python, base),
            }
        case DeploymentSpec(engine=VllmEngine() as engine):
            changes = {"engine": engine.model_copy(update={"python": _program(engine.python, base)})}
        case DeploymentSpec(engine=CommandEngine() as engine) if engine.command[0].startswith(("./", "../", "~/")):
            command = [_absolute(engine.command[0], base), *engine.command[1:]]
            changes = {"engine": engine.model_copy(update={"command": command})}
    return spec.model_copy(update=changes)


def _program(name: str | None, base: Path) -> str | None:
    """A program with a slash in it is a path; one without is looked up in PATH by the daemon."""
    return _absolute(name, base) if name and "/" in name else name


def _absolute(path: str, base: Path) -> str:
    # normpath, not resolve: a virtual environment's python is a link, and what it points to is not the environment.
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:  # ~nobody-of-that-name
        expanded = Path(path)
    return os.path.normpath(base / expanded)
