"""The JSON schema of `evaluation.json`, made from the records that write it; docs/evaluation.schema.json publishes it.

A field's description is the text below it in the source, a record's its docstring. Fields with a default may be absent:
records of older versions lack them.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from reports.records import Evaluation

_PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number"}


def evaluation_schema() -> dict[str, Any]:
    """The schema, in the dialect of 2020-12."""
    definitions: dict[str, Any] = {}
    root = _reference(Evaluation, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "evaluation.json of an offline-dqn release",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _reference(kind: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}  # a record may hold itself
        definitions[kind.__name__] = _definition(kind, definitions)
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _definition(kind: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    hints, texts = typing.get_type_hints(kind), _field_texts(kind)
    fields = dataclasses.fields(kind)
    properties = {}
    for field in fields:
        described = {"description": texts[field.name]} if field.name in texts else {}
        properties[field.name] = {**_schema_of(hints[field.name], definitions), **described}
    return {
        "type": "object",
        "description": inspect.cleandoc(kind.__doc__ or ""),
        "properties": properties,
        "required": [f.name for f in fields if not _has_default(f)],
        "additionalProperties": False,
    }


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _schema_of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if hint is type(None):
        return {"type": "null"}
    if hint in (object, Any):
        return {}
    if dataclasses.is_dataclass(hint):
        return _reference(typing.cast(type[Any], hint), definitions)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema_of(argument, definitions) for argument in arguments]}
    if origin is tuple and len(arguments) == 2 and arguments[1] is ...:
        return {"type": "array", "items": _schema_of(arguments[0], definitions)}
    if origin is tuple:
        n = len(arguments)
        items = [_schema_of(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": n, "maxItems": n}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], definitions)}
    raise TypeError(f"evaluation.json cannot hold a {hint}: a record holds text, numbers, tuples and mappings.")


def _field_texts(kind: type[Any]) -> Mapping[str, str]:
    """The string below each field of a record, as its source has it."""
    module = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
    (record,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in zip(record.body, record.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
