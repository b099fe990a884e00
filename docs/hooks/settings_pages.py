"""The reference of the two files a user edits: every key with type, default and meaning, from the models."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

SETTINGS = """\
# Every setting

`offline_dqn.toml` has a table for each stage. A key that is not there has the default shown here; an unknown one is an
error that names the nearest known one. The settings that were in force are kept beside everything made under them.
"""

CONTRACT = """\
# Every key of the contract

`contract.toml`, key by key; [Describe a decision problem](../contract.md) explains what they are for.
"""


def settings_page() -> str:
    """Markdown: a section per table of `offline_dqn.toml`."""
    from pipelines.config import PipelineConfig

    return "\n".join([SETTINGS, *_tables(PipelineConfig, "")])


def contract_page() -> str:
    """Markdown: a section per table of `contract.toml`."""
    from datasets.contract import Contract

    return "\n".join([CONTRACT, *_tables(Contract, "")])


def _tables(model: type[Any], path: str) -> Iterator[str]:
    """A section for the model's plain keys, and one for each table below it."""
    rows, below = [], []
    for name, field in model.model_fields.items():
        key, said = field.alias or name, _said(model).get(name, "")
        inner = list(_models_in(field.annotation))
        if not inner:
            rows.append(f"| `{key}` | {_type(field)} | {_default(field)} | {_cell(said)} |")
            continue
        for found in inner:
            where = f"{path}{key}" + (_named(field.annotation, found) if len(inner) > 1 or _is_mapping(field) else "")
            below.append((found, where, said))
    if path or rows:
        title = f"## `[{path.removesuffix('.')}]`" if path else "## At the top of the file"
        said = _introduction(model)
        yield "\n".join([title, "", *([said, ""] if said else []), *_table(rows)])
    for found, where, _ in below:
        yield from _tables(found, f"{where}.")


def _table(rows: list[str]) -> list[str]:
    return ["| key | type | default | |", "| --- | --- | --- | --- |", *rows, ""] if rows else []


def _introduction(model: type[Any]) -> str:
    """The docstring of a model without what it says to programmers (Attributes, Raises)."""
    paragraphs = inspect.cleandoc(model.__doc__ or "").split("\n\n")
    kept = "\n\n".join(p for p in paragraphs if not p.startswith(("Attributes:", "Raises:", "Args:")))
    named = re.match(r"`\[[\w.]+\]`: ", kept)  # the heading says it already
    return kept[named.end() :].lstrip() if named else kept


@cache
def _said(model: type[Any]) -> dict[str, str]:
    """The docstring below each field, of the model and of those it is built on."""
    said: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if not each.__module__.startswith(("datasets", "drift", "offline_dqn", "reports", "pipelines")):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body  # type: ignore[attr-defined]
        for field, following in pairwise(body):
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if is_text and isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                said[field.target.id] = inspect.cleandoc(str(following.value.value))
    return said


def _models_in(annotation: Any) -> Iterator[type[Any]]:
    from datasets.settings import Settings

    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
        return
    for inner in typing.get_args(annotation):
        if not isinstance(inner, str):
            yield from _models_in(inner)


def _is_mapping(field: Any) -> bool:
    return typing.get_origin(field.annotation) is dict


def _named(annotation: Any, found: type[Any]) -> str:
    kind = found.model_fields.get("type")
    label = typing.get_args(kind.annotation)[0] if kind is not None and typing.get_args(kind.annotation) else "NAME"
    return f".{label.upper()}" if typing.get_origin(annotation) is dict else ""


def _type(field: Any) -> str:
    limits = [_limit(each) for each in field.metadata]
    shown = _type_name(field.annotation)
    return _cell(", ".join([shown, *(limit for limit in limits if limit)]))


def _limit(constraint: Any) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return " ".join(f"{sign} {getattr(constraint, name)}" for name, sign in signs.items() if hasattr(constraint, name))


def _type_name(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{value!r}`".replace("'", '"') for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(each) for each in inner if each is not type(None))
    if origin is typing.Annotated:
        return _type_name(inner[0])
    if origin in (tuple, list, frozenset, set):
        return f"list of {_type_name(inner[0])}" if inner else "list"
    if origin is dict or annotation is dict:
        return f"table of {_type_name(inner[1])}" if inner else "table"
    names = {str: "text", float: "number", int: "whole number", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if value is None else _cell(f"`{_toml(value)}`")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list | frozenset | set):
        return f"[{', '.join(_toml(each) for each in value)}]"
    return "{}" if value == {} else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
