"""An image in a log row as SQL: a list of its numbers, row by row, or nested as [row][column][channel]."""

from __future__ import annotations

from datasets.contract import ImageFeature
from datasets.duck import literal
from datasets.fast_rules import NO_NUMBERS, without


def image_typed(feature: ImageFeature, document: str) -> str:
    """The numbers of an image as one list of bytes, from the SQL of its JSON; NULL stands for one that is no byte.

    NULL where it is no list of numbers, or nested in another way than the shape says. Without channels to tell apart,
    [row][column] is as good.
    """
    # Most logs hold whole numbers alone, and those need an eighth of the memory.
    is_list = f"starts_with({_start(document)}, '[') AND {without(document, *NO_NUMBERS)}"
    return f"""CASE WHEN NOT coalesce({is_list}, false) THEN NULL
        WHEN {without(document, ".", "e", "E")} THEN {_flat(feature, document, "UTINYINT")}
        ELSE list_transform({_flat(feature, document, "DOUBLE")},
            lambda e: CASE WHEN e BETWEEN 0 AND 255 AND e = floor(e) THEN e::UTINYINT END) END"""


def image_problem(name: str, feature: ImageFeature, raw: str, typed: str) -> list[tuple[str, str]]:
    """What may be wrong with an image: SQL conditions, and the text of each."""
    shown = f"left({raw}::VARCHAR, 60)"
    wanted = f", no image of {feature.shown_shape} numbers, as one list or nested as rows, columns and channels"
    instead = literal(f" numbers instead of {feature.size} ({feature.shown_shape})")
    return [
        (f"{raw} IS NOT NULL AND {typed} IS NULL", f"{literal(name + ' is ')} || {shown} || {literal(wanted)}"),
        (f"len({typed}) <> {feature.size}", f"{literal(name + ' has ')} || len({typed}) || {instead}"),
        (
            f"list_count({typed}) <> {feature.size}",
            literal(f"{name} holds something else than whole numbers from 0 to 255"),
        ),
    ]


def _flat(feature: ImageFeature, document: str, element: str) -> str:
    height, width, channels = feature.shape
    columns = _all("r", "c", f"len(c) = {channels}")
    cube = f"len(t) = {height} AND {_all('t', 'r', f'len(r) = {width} AND {columns}')}"
    plane = f"len(t) = {height} AND {_all('t', 'r', f'len(r) = {width}')}" if channels == 1 else "false"
    return f"""CASE WHEN starts_with({_start(document)}, '[[[')
            THEN {_where(f"TRY_CAST({document} AS {element}[][][])", cube, "flatten(flatten(t))")}
        WHEN starts_with({_start(document)}, '[[')
            THEN {_where(f"TRY_CAST({document} AS {element}[][])", plane, "flatten(t)")}
        ELSE TRY_CAST({document} AS {element}[]) END"""


def _start(document: str) -> str:
    """How a JSON text begins, without white space: to ask JSON functions would parse all of it each time."""
    return f"translate(left({document}::VARCHAR, 60), ' ' || chr(9) || chr(10) || chr(13), '')"


def _all(values: str, each: str, condition: str) -> str:
    return f"list_bool_and(list_transform({values}, lambda {each}: coalesce({condition}, false)))"


def _where(value: str, condition: str, result: str) -> str:
    """`result` of a value `t` where the condition holds, else NULL; the value is computed once."""
    return f"list_extract(list_transform([{value}], lambda t: CASE WHEN {condition} THEN {result} END), 1)"
