"""Frozen, typed settings read from TOML, with errors that name the key, the value and the nearest known key."""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from datasets.errors import OfflineDqnError


class SettingsError(OfflineDqnError):
    """A configuration or contract file that cannot be used; lists every problem found in it."""


class Settings(BaseModel):
    """Base of the contract and of every stage's configuration: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


SettingsT = TypeVar("SettingsT", bound=Settings)

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOGIN = re.compile(r"://\S*@|[^\s:/@]:[^\s/@]+@")
"""What stands before the host in an address with a user and a password."""


def variable_name(value: Any, key: str, example: str) -> str:
    """A name of an environment variable, for settings whose value is a secret.

    Raises:
        ValueError: it is none, perhaps the secret itself, so it is not quoted. Ask before pydantic looks at the fields:
            its own errors quote what they found.
    """
    if isinstance(value, str) and _VARIABLE.fullmatch(value):
        return value
    raise ValueError(
        f"{key} is the name of an environment variable, and what stands there is none. An address is a secret: export "
        f'it, {example}=..., and write {key} = "{example}"'
    )


def place_of_file(value: str) -> str:
    """A path of a file, for settings that may name one elsewhere, as the collector of metrics wants it.

    Raises:
        ValueError: it is relative and leaves the workspace. What lies elsewhere is named in full, so that it is seen.
    """
    path = PurePosixPath(value)
    if "\0" in value or value.startswith("~") or (not path.is_absolute() and ".." in path.parts):
        raise ValueError(
            "leaves the workspace: a relative path stays in it; a place elsewhere is named by its absolute path, "
            "without ~"
        )
    return value


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of a TOML text; `where` names it in the error."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(
            f"{where} is not valid TOML: {error}. Correct that line and run the command again."
        ) from error


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SettingsError(f"{path} does not exist. `offline-dqn init DIR` writes a workspace with one.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}.") from error
    return parse_toml(text, str(path))


def refuse_logins(values: Mapping[str, Any], where: str) -> None:
    """Refuses settings that hold an address with a user or a password, whatever the key: they are saved beside every
    artefact, and backed up.

    Raises:
        SettingsError: naming each key, and no value.
    """
    keys = list(_keys_with_login(values, ""))
    if keys:
        lines = "\n".join(f"  {key}: holds a user or a password (not shown here)." for key in keys)
        raise SettingsError(
            f"{where} must hold no secret:\n{lines}\nSecrets come from the environment; docs/security.md says which "
            "variable each setting wants. Take it out, and change the password: it may be in a backup by now."
        )


def _keys_with_login(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inside in value.items():
            yield from _keys_with_login(inside, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inside in value:
            yield from _keys_with_login(inside, key)
    elif isinstance(value, str) and "://" in value and _LOGIN.search(value):
        yield key


def build_settings(model: type[SettingsT], values: Mapping[str, Any], where: str) -> SettingsT:
    """`values` as a `model`; every problem is reported in one error.

    Raises:
        SettingsError: naming each key, what was found and what is wanted; for an unknown key the nearest known one.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_describe(model, problem) for problem in error.errors()]
        lines = "\n".join(f"  {line}" for line in problems)
        plural = "problem" if len(problems) == 1 else "problems"
        raise SettingsError(f"{where} has {len(problems)} {plural}:\n{lines}") from error


def _describe(model: type[Settings], problem: Any) -> str:
    # pydantic puts the tag of a discriminated union behind the feature's name; it is no key of the file.
    location = [str(part) for part in problem["loc"]]
    tag = location.pop(2) if location[0:1] == ["features"] and len(location) > 2 else None
    key = ".".join(location) or "(the whole file)"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1], tag)
        nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known here: {', '.join(sorted(known)) or 'nothing'}."
        return f"{key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{key}: missing."
    if problem["type"] == "union_tag_not_found":
        return f"{key}: {_discriminator(problem)} is missing."
    if problem["type"] == "union_tag_invalid":
        found, wanted = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
        return f"{key}: {_discriminator(problem)} is '{found}'; wanted is one of {wanted}"
    message = problem["msg"].removeprefix("Value error, ")
    silent = isinstance(problem["input"], dict) or _may_hold_a_secret(problem["input"])
    return f"{key}: {message}" + ("" if silent else f" (found {problem['input']!r})")


def _may_hold_a_secret(value: Any) -> bool:
    """Whether a value looks like an address with a user and a password in it, which no message may repeat."""
    return isinstance(value, str) and _LOGIN.search(value) is not None


def _discriminator(problem: Any) -> str:
    return str(problem["ctx"]["discriminator"]).strip("'")


def _known_keys(model: type[BaseModel], path: list[str], tag: str | None) -> list[str]:
    """Field names of the (possibly nested) settings model that `path` leads to; `tag` picks one of a union."""
    models: list[type[BaseModel]] = [model]
    for part in path:
        annotations = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        if not annotations:  # a key of a dict of settings, such as a feature's name
            continue
        models = [inner for annotation in annotations for inner in _models_within(annotation)]
    if tag is not None:
        models = [m for m in models if tag in typing.get_args(m.model_fields["type"].annotation)]
    return sorted({(field.alias or name) for m in models for name, field in m.model_fields.items()})


def _models_within(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        return [inner for argument in typing.get_args(annotation) for inner in _models_within(argument)]
    return []
