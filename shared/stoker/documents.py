"""YAML as people write it, read into plain values that still know their lines.

Why not the parser's own `load`: it stops at the first problem, keeps the last of two equal keys, expands anchors
without bound, and turns dates and custom tags into objects that a JSON API can't take.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_VALUES = 100_000  # in one file, anchors expanded
MAX_INTEGER = 1 << 63  # what JSON readers, SQLite and Python's own printing all take
_NO_TEXT = "is no text: it has half of a surrogate pair"
Where = tuple[str | int, ...]
"""The way to a value: keys of mappings and indices (from 0) of lists."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = frozenset({"int", "float", "bool", "null"})
_TEXT = frozenset({"str", "timestamp", "value", "merge"})  # a date stays text: the spec's field says what it means


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a file. ``line`` counts from 1; ``field`` is dotted, or empty when no field is meant."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}"
        return f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"

    def as_dict(self) -> dict[str, str | int]:
        """JSON-ready form."""
        return {"file": self.file, "line": self.line, "field": self.field, "message": self.message}


@dataclass(slots=True)
class Document:
    """One YAML document: ``value`` of plain dicts (text keys), lists and scalars, and the lines that they stand on.

    ``flaws`` are (where, line, message) of what was wrong already as YAML, such as a key that is given twice.
    """

    file: str
    line: int
    value: Any = None
    key_lines: dict[Where, int] = field(default_factory=dict)
    value_lines: dict[Where, int] = field(default_factory=dict)
    flaws: list[tuple[Where, int, str]] = field(default_factory=list)

    def at(self, where: Where) -> Any:
        """The value at *where*; None if there is none."""
        value = self.value
        for part in where:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def line_of(self, where: Where) -> int:
        """The line of a scalar, or of the key of a mapping or list; of the nearest parent for what is not there."""
        while where:
            key = self.key_lines.get(where)
            value = self.at(where)
            if key is not None and (value is None or isinstance(value, dict | list)):
                return key  # an empty value stands wherever the parser noticed that there is none
            line = self.value_lines.get(where, key)
            if line is not None:
                return line
            where = where[:-1]
        return self.line


class _TooMuchError(Exception):
    """The anchors of a file expand to more than may be held."""


def read_documents(text: str, file: str) -> tuple[list[Document], list[Problem]]:
    """Read all documents of *text*; empty ones are left out. *file* is the name that problems bear.

    A syntax error ends the reading: what stands before it is given back beside the problem. Never raises for any text.
    """
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        return [], [Problem(file, 1, "", f"the file is larger than {MAX_BYTES >> 20} MiB: split it")]
    documents: list[Document] = []
    reader = _Reader(file)
    try:
        for node in reader.nodes(text.removeprefix("\ufeff")):
            document = reader.document(node)
            if document.value is not None or document.flaws:
                documents.append(document)
    except _TooMuchError:
        message = f"more than {MAX_VALUES:,} values, anchors expanded: split the file, or use fewer anchors"
        return documents, [Problem(file, 1, "", message)]
    except RecursionError:
        return documents, [Problem(file, 1, "", f"nested deeper than {MAX_DEPTH} levels")]
    except YAMLError as error:
        return documents, [_syntax_problem(error, file, text)]
    except Exception as error:  # the parser's own slips (IndexError, ValueError, …) on malformed text
        return documents, [Problem(file, 1, "", f"not valid YAML ({type(error).__name__}: {error})")]
    return documents, []


class _Reader:
    """Turns the parser's nodes into documents; counts values over a whole file."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._left = MAX_VALUES
        # "safe" and pure: the round-trip loader builds comment objects that nobody needs here, the C parser has
        # neither a depth limit nor an honest recursion error.
        self._yaml = YAML(typ="safe", pure=True)
        self._yaml.max_depth = MAX_DEPTH

    def nodes(self, text: str) -> Iterator[Node]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an anchor that is defined again: legal
            yield from self._yaml.compose_all(text)

    def document(self, node: Node) -> Document:
        document = Document(self._file, _line(node))
        document.value = self._value(node, (), document, ())
        return document

    def _value(self, node: Node, where: Where, document: Document, parents: tuple[Node, ...]) -> Any:
        self._left -= 1
        if self._left < 0:
            raise _TooMuchError
        if len(parents) > MAX_DEPTH:
            raise RecursionError
        document.value_lines[where] = _line(node)
        if any(node is p for p in parents):
            document.flaws.append((where, _line(node), f"anchor &{node.anchor} contains itself"))
            return None
        tag = str(node.tag)
        if isinstance(node, ScalarNode):
            return self._scalar(node, tag.removeprefix(_TAG), where, document)
        if isinstance(node, SequenceNode) and tag == f"{_TAG}seq":
            inner = (*parents, node)
            return [self._value(n, (*where, i), document, inner) for i, n in enumerate(node.value)]
        if isinstance(node, MappingNode) and tag == f"{_TAG}map":
            return self._mapping(node, where, document, (*parents, node))
        document.flaws.append((where, _line(node), f"the tag {_short(tag)} is not supported"))
        return None

    def _mapping(self, node: MappingNode, where: Where, document: Document, parents: tuple[Node, ...]) -> Any:
        inherited: dict[str, Any] = {}
        merges = [(k, v) for k, v in node.value if str(k.tag) == f"{_TAG}merge"]
        for key_node, value_node in merges:  # first, so that the lines of the mapping's own keys win
            for parent in value_node.value if isinstance(value_node, SequenceNode) else [value_node]:
                base = self._value(parent, where, document, parents)
                if isinstance(base, dict):
                    inherited = base | inherited
                else:
                    document.flaws.append((where, _line(key_node), "`<<` takes a mapping or a list of mappings"))
        document.value_lines[where] = _line(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if str(key_node.tag) == f"{_TAG}merge":
                continue
            if not isinstance(key_node, ScalarNode) or str(key_node.tag) == f"{_TAG}null":
                document.flaws.append((where, line, "a key must be text"))
                continue
            key = str(key_node.value)
            if not _is_text(key):
                document.flaws.append((where, line, f"the key {key!a} {_NO_TEXT}"))
                continue
            inner = (*where, key)
            if key in result:
                first = document.key_lines[inner]
                document.flaws.append((inner, line, f"given twice (first on line {first})"))
                continue
            document.key_lines[inner] = line
            result[key] = self._value(value_node, inner, document, parents)
        return inherited | result

    def _scalar(self, node: ScalarNode, kind: str, where: Where, document: Document) -> Any:
        if kind in _TEXT:
            if not _is_text(node.value):
                document.flaws.append((where, _line(node), f"{node.value[:40]!a} {_NO_TEXT}"))
            return str(node.value)
        if kind not in _PLAIN:
            document.flaws.append((where, _line(node), f"the tag {_short(str(node.tag))} is not supported"))
            return None
        try:
            value = self._yaml.constructor.construct_object(node)
        except Exception:  # `!!int x`, or digits beyond what Python takes
            value = MAX_INTEGER
        if not isinstance(value, float) and value is not None and abs(value) >= MAX_INTEGER:
            document.flaws.append((where, _line(node), f"{node.value[:40]!r} is not a number that can be kept"))
            return None
        if isinstance(value, float) and not math.isfinite(value):
            document.flaws.append((where, _line(node), f"expected a finite number (got {node.value})"))
        # The parser's own subclasses of int and float remember how they were written; nothing after this wants that.
        if isinstance(value, bool) or value is None:
            return value
        return float(value) if isinstance(value, float) else int(value)


def _is_text(value: str) -> bool:
    """Whether *value* can be written as UTF-8: ``"\\ud800"`` is half a character."""
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _short(tag: str) -> str:
    return f"!!{tag.removeprefix(_TAG)}" if tag.startswith(_TAG) else tag


def _syntax_problem(error: YAMLError, file: str, text: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if isinstance(error, MarkedYAMLError) and mark is not None:
        said = " ".join(str(x) for x in (error.context, error.problem) if x)
        if "maximum depth" in said:
            said = f"nested deeper than {MAX_DEPTH} levels"
        elif "'\\t'" in said:
            said += " (YAML is indented with spaces, not with tabs)"
        return Problem(file, mark.line + 1, "", f"not valid YAML: {said} (column {mark.column + 1})")
    position = getattr(error, "position", None)
    if isinstance(position, int):  # a character that YAML forbids
        line = text.count("\n", 0, position) + 1
        column = position - (text.rfind("\n", 0, position) + 1) + 1
        character = getattr(error, "character", "")
        shown = f"U+{character:04X}" if isinstance(character, int) else ascii(character)
        return Problem(file, line, "", f"not valid YAML: the character {shown} is not allowed (column {column})")
    return Problem(file, 1, "", f"not valid YAML: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
