"""What pydantic found wrong, said in a spec author's words: the field as it was written, and what was expected.

Pydantic names union members and validators in its locations (``engine.vllm.args.0``, ``params.lr.int``) and says one
thing for each member of a union; here a value gets one sentence.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stoker.documents import Document, Problem, Where
from stoker.types.base import NAME_PATTERN


@dataclass(frozen=True, slots=True)
class _Found:
    """One of pydantic's errors; the model that its field is of; the tags that a discriminated union takes there."""

    details: ErrorDetails
    owner: type[BaseModel] | None
    tags: list[str]


_NAME_WORDS = "a name (lower-case letters, digits, '.', '_', '-'; at most 63; letter or digit first and last)"


def explain(error: ValidationError, document: Document, annotation: Any, prefix: str) -> list[Problem]:
    """Say what *error*, met when *document* was validated as *annotation*, means for the author.

    Fields are named from *prefix* on (e.g. ``job``). One problem for each field, in order of lines.
    """
    by_field: dict[Where, list[_Found]] = {}
    for details in error.errors(include_url=False):
        where, owner, met = _resolve(annotation, details["loc"])
        tags: list[str] = []
        if details["type"].startswith("union_tag"):
            discriminator = str(details["ctx"]["discriminator"]).strip("'")
            where, tags = (*where, discriminator), _tags(met, discriminator)
        by_field.setdefault(where, []).append(_Found(details, owner, tags))
    problems = []
    for where, found in by_field.items():
        line = document.line_of(where)
        if found[0].details["type"] == "extra_forbidden":
            line = document.key_lines.get(where, line)
        message = _message(where, found, document.at(where))
        problems.append(Problem(document.file, line, field_name(prefix, where), message))
    return sorted(problems, key=lambda p: p.line)


def field_name(prefix: str, where: Where) -> str:
    """``("steps", 0, "percent")`` under the prefix ``rollout``: ``rollout.steps[0].percent``."""
    name = prefix
    for part in where:
        if isinstance(part, int):
            name += f"[{part}]"
        elif re.fullmatch(r"[\w-]+", part):
            name += f".{part}" if name else part
        else:
            name += f"[{shown(part)}]"
    return name


def shown(value: Any) -> str:
    """A value as an error quotes it: short, on one line, without control characters."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    return str(value)[:60]


def nearest(word: str, known: Sequence[str]) -> str:
    """``; did you mean 'timeout'?``, or nothing when none of *known* is like *word*."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _resolve(annotation: Any, location: Sequence[str | int]) -> tuple[Where, type[BaseModel] | None, Any]:
    """Follow pydantic's *location* through the types.

    Returns the way as the user wrote it, the model that its last part is (or should be) a field of, and the type there.
    """
    where: list[str | int] = []
    owner: type[BaseModel] | None = None
    rest = list(location)
    while rest:
        annotation = _bare(annotation)
        members = _members(annotation)
        if len(members) == 1:
            annotation = members[0]
        elif members:
            annotation = _chosen(members, rest.pop(0))
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            part = rest.pop(0)
            where.append(part)
            owner = annotation
            field = annotation.model_fields.get(str(part))
            annotation = field.annotation if field else Any
        elif get_origin(annotation) is dict:
            where.append(str(rest.pop(0)))
            owner = None
            annotation = get_args(annotation)[1]
            if rest[:1] == ["[key]"]:
                rest.clear()
        elif get_origin(annotation) in (list, tuple) and isinstance(rest[0], int):
            where.append(rest.pop(0))
            owner = None
            annotation = get_args(annotation)[0]
        else:  # the name of a validator or of a union's member that is no model
            rest.pop(0)
    return tuple(where), owner, annotation


def _bare(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _members(annotation: Any) -> list[Any]:
    """The members of a union, None left out; nothing for another type."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return []
    return [a for a in get_args(annotation) if a is not type(None)]


def _chosen(members: list[Any], tag: str | int) -> Any:
    for member in map(_bare, members):
        if not (isinstance(member, type) and issubclass(member, BaseModel)):
            continue
        literals = [f.annotation for f in member.model_fields.values() if get_origin(f.annotation) is Literal]
        if member.__name__ == tag or any(tag in get_args(x) for x in literals):
            return member
    return Any


def _tags(union: Any, discriminator: str) -> list[str]:
    """What a discriminated union takes in the field *discriminator*."""
    fields = [m.model_fields[discriminator] for m in map(_bare, _members(_bare(union))) if hasattr(m, "model_fields")]
    return [str(tag) for field in fields for tag in get_args(field.annotation)]


def _message(where: Where, found: list[_Found], value: Any) -> str:
    details, owner, name = found[0].details, found[0].owner, str(where[-1]) if where else ""
    kind = details["type"]
    if kind == "missing":
        field = owner.model_fields.get(name) if owner else None
        about = f" ({field.description})" if field and field.description else ""
        return f"missing: it must be given{about}"
    if kind == "union_tag_not_found":
        return f"missing: expected one of {', '.join(found[0].tags)}"
    if kind == "union_tag_invalid":
        close = nearest(str(value), found[0].tags)
        return f"expected one of {', '.join(found[0].tags)} (got {shown(value)}{close})"
    if kind == "extra_forbidden":
        known = [*owner.model_fields] if owner else []
        return f"unknown field{nearest(name, known) or '; known are ' + ', '.join(known)}"
    if details["loc"] and details["loc"][-1] == "[key]":
        return f"the key {shown(name)} can't be taken: expected {_expected(details)}"
    wanted = _one_of([_expected(f.details) for f in found])
    if kind in ("value_error", "assertion_error") and isinstance(value, Mapping):
        return wanted  # a rule over several fields: the mapping itself says nothing more
    quote = ": put it in quotes" if wanted == "text" and isinstance(value, int | float) else ""
    close = ""
    if kind == "literal_error" and isinstance(value, str):
        close = nearest(value, re.findall(r"'([^']*)'", str(details["ctx"]["expected"])))
    return f"expected {wanted.removeprefix('expected ')} (got {shown(value)}{close}){quote}"


def _one_of(wanted: list[str]) -> str:
    """The members of a union in one phrase; "a number" covers whole ones."""
    phrases = [w for w in dict.fromkeys(wanted) if not (w == "a whole number" and "a number" in wanted)]
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} or {phrases[-1]}"


_WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "string_type": lambda c: "text",
    "int_type": lambda c: "a whole number",
    "int_parsing": lambda c: "a whole number",
    "int_parsing_size": lambda c: "a whole number that is not that large",
    "int_from_float": lambda c: "a whole number",
    "float_type": lambda c: "a number",
    "float_parsing": lambda c: "a number",
    "finite_number": lambda c: "a finite number",
    "bool_type": lambda c: "true/false",
    "bool_parsing": lambda c: "true/false",
    "list_type": lambda c: "a list",
    "tuple_type": lambda c: "a list",
    "dict_type": lambda c: "a mapping (`key: value` lines)",
    "model_type": lambda c: "a mapping (`key: value` lines)",
    "model_attributes_type": lambda c: "a mapping (`key: value` lines)",
    "literal_error": lambda c: f"one of {str(c['expected']).replace(' or ', ', ')}".replace("'", ""),
    "greater_than": lambda c: f"more than {c['gt']:g}",
    "greater_than_equal": lambda c: f"at least {c['ge']:g}",
    "less_than": lambda c: f"less than {c['lt']:g}",
    "less_than_equal": lambda c: f"at most {c['le']:g}",
    "too_short": lambda c: f"at least {c['min_length']} item{'s' if c['min_length'] != 1 else ''}",
    "too_long": lambda c: f"at most {c['max_length']} items",
    "string_too_short": lambda c: f"at least {c['min_length']} characters",
    "string_too_long": lambda c: f"at most {c['max_length']} characters",
    "string_pattern_mismatch": lambda c: _NAME_WORDS if c["pattern"] == NAME_PATTERN else f"text like {c['pattern']}",
    "value_error": lambda c: str(c["error"]),
    "assertion_error": lambda c: str(c["error"]),
}


def _expected(details: ErrorDetails) -> str:
    """What was expected, to be read after "expected"."""
    kind = details["type"]
    if kind in _WORDS:
        return _WORDS[kind](details.get("ctx", {}))
    if kind.startswith(("datetime", "date_", "timezone")):
        return "a date and time such as 2026-01-31T08:00:00Z"
    said = details["msg"]
    return said[:1].lower() + said[1:].removeprefix("nput should be ") if said.startswith("Input") else said
