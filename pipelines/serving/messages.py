"""What clients send and get: models that follow from the contract, and the causes of refusals.

The same models check requests and describe them in the OpenAPI page. An observation is accepted if and only if the
night's ingest would accept it (`datasets.observations`): a decision that is answered must never end in quarantine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import GenericAlias
from typing import Annotated, Any, Literal, NotRequired, cast

import pydantic_core
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from datasets.contract import (
    BooleanFeature,
    CategoricalFeature,
    Contract,
    Feature,
    ImageFeature,
    NumericFeature,
    VectorFeature,
)
from datasets.images import image_problem
from pipelines.serving.outcome import End, Outcome
from pipelines.serving.refusals import Problem, Refusal, RefusedRequestError

_MAX_STEP = 2**31 - 1
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)
"""What nanoseconds since 1970 in 64 bits reach to: no reader of a log has trouble with less."""
_SHOWN = 20
"""Problems that a refusal lists."""
_STRICT = ConfigDict(extra="forbid", strict=True)

Label = Annotated[str, Field(min_length=1, max_length=500)]


@dataclass(frozen=True)
class Asked:
    """One request for decisions.

    Attributes:
        decisions: as they were sent, checked.
        is_batch: whether they came as a list, and are answered as one.
    """

    decisions: list[dict[str, Any]]
    is_batch: bool


class ActMessages:
    """Reads requests for decisions under a contract.

    Args:
        contract: whose features and actions they speak of.
        clock: "request" wants a `timestamp` with every decision, "server" takes none.
        max_batch: most decisions of a request.
    """

    def __init__(self, contract: Contract, clock: Literal["server", "request"], max_batch: int) -> None:
        self._max_batch = max_batch
        decisions: Any = GenericAlias(list, (_decision_type(contract, clock),))
        self.decision: TypeAdapter[list[dict[str, Any]]] = TypeAdapter(decisions)
        self.name = contract.name

    def read(self, body: bytes) -> Asked:
        """The decisions that a body asks for.

        Raises:
            RefusedRequestError: it is no JSON, too long a list, or any of it is wrong; nothing is decided then.
        """
        values = parse_json(body)
        is_batch = "decisions" in values
        found = batch_of(values, "decisions", self._max_batch) if is_batch else [values]
        try:
            return Asked(self.decision.validate_python(found), is_batch)
        except ValidationError as error:
            raise refusal_of(error, "decisions" if is_batch else "") from None

    def describe(self, openapi: dict[str, Any]) -> None:
        """Puts what /v1/act takes and gives into an OpenAPI page."""
        summary = "Decide for one observation or many"
        _describe(openapi, "/v1/act", summary, ("Decision", self.decision), ("Answer", Answer), "decisions")


class OutcomeMessages:
    """Reads outcomes under a contract.

    Args:
        contract: whose rewards and features they speak of.
        clock: "request" wants a `timestamp` with every outcome.
        max_batch: most outcomes of a request.
    """

    def __init__(self, contract: Contract, clock: Literal["server", "request"], max_batch: int) -> None:
        self._contract, self._max_batch = contract, max_batch
        outcomes: Any = GenericAlias(list, (_outcome_type(contract, clock),))
        self.outcome: TypeAdapter[list[dict[str, Any]]] = TypeAdapter(outcomes)

    def read(self, body: bytes, now: datetime) -> tuple[list[Outcome], bool]:
        """The outcomes that a body tells of, and whether they came as a list.

        Args:
            body: of the request.
            now: the time of those that say none.

        Raises:
            RefusedRequestError: it is no JSON, too long a list, or any of it is wrong; nothing is written then.
        """
        values = parse_json(body)
        is_batch = "outcomes" in values
        found = batch_of(values, "outcomes", self._max_batch) if is_batch else [values]
        try:
            checked = self.outcome.validate_python(found)
        except ValidationError as error:
            raise refusal_of(error, "outcomes" if is_batch else "") from None
        return [
            self._outcome(each, now, f"outcomes[{row}]" if is_batch else "") for row, each in enumerate(checked)
        ], is_batch

    def _outcome(self, told: dict[str, Any], now: datetime, where: str) -> Outcome:
        ends: list[End] = [end for end in ("terminated", "truncated") if told.get(end)]
        if len(ends) > 1:
            raise RefusedRequestError.of(
                "contradiction", "an episode is terminated or truncated, not both", where=where
            )
        if told.get("reward") is None and not ends:
            raise RefusedRequestError.of("empty_outcome", "it brings neither a reward nor an end", where=where)
        final = told.get("final_observation")
        if final is not None and ends != ["truncated"]:
            raise RefusedRequestError.of(
                "contradiction", "final_observation belongs to a truncated episode alone", where=where
            )
        timestamp = told.get("timestamp")
        return Outcome(
            told["decision_id"],
            now if timestamp is None else read_instant(timestamp, where),
            told.get("reward"),
            ends[0] if ends else None,
            final,
            is_timed=timestamp is not None,
        )

    def describe(self, openapi: dict[str, Any]) -> None:
        """Puts what /v1/outcomes takes and gives into an OpenAPI page."""
        summary, answer = "Tell what became of decisions", ("OutcomeAnswer", OutcomeAnswer)
        _describe(openapi, "/v1/outcomes", summary, ("Outcome", self.outcome), answer, "outcomes")


class OutcomeAnswer(TypedDict):
    """What became of an outcome: accepted ones are in the log."""

    decision_id: str
    status: Literal["new", "unverified", "repeated", "unknown", "early", "late", "contradicting", "not_last"]
    accepted: bool
    message: str


class Answer(TypedDict):
    """What was decided."""

    decision_id: str
    action: str
    action_value: float | None
    probability: float
    probabilities: dict[str, float]
    decided_by: Literal["policy", "shield", "guard", "late", "baseline"]
    release: int
    forbidden: dict[str, str]
    logged: NotRequired[bool]


def _describe(
    openapi: dict[str, Any],
    path: str,
    summary: str,
    asked: tuple[str, TypeAdapter[Any]],
    answer: tuple[str, Any],
    name: str,
) -> None:
    answers: Any = GenericAlias(list, (answer[1],))
    _, found = TypeAdapter.json_schemas(
        [("asked", "validation", asked[1]), ("answer", "serialization", TypeAdapter(answers))],
        ref_template="#/components/schemas/{model}",
    )
    components = openapi.setdefault("components", {}).setdefault("schemas", {})
    refused = TypeAdapter(Refusal).json_schema(ref_template="#/components/schemas/{model}")
    components.update({**found["$defs"], **refused.pop("$defs"), "Refusal": refused})
    told = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    operation = {
        "summary": summary,
        "operationId": path.removeprefix("/").replace("/", "_"),
        "requestBody": {"required": True, "content": _content(asked[0], name)},
        "responses": {
            "200": {"description": "Done", "content": _content(answer[0], name)},
            "4XX": {"description": "Refused; nothing of it was done", "content": told},
        },
    }
    openapi["paths"] = {path: {"post": operation}, **openapi["paths"]}


def _content(model: str, name: str) -> dict[str, Any]:
    one = {"$ref": f"#/components/schemas/{model}"}
    many = {
        "type": "object",
        "properties": {name: {"type": "array", "items": one}},
        "required": [name],
        "additionalProperties": False,
    }
    return {"application/json": {"schema": {"anyOf": [one, many]}}}


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        RefusedRequestError: it is none.
    """
    try:
        values = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise _unparsed(body, error) from None
    if not isinstance(values, dict):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(values), "a single value")
        raise RefusedRequestError.of("wrong_type", f"the body wants a JSON object, found {kind}")
    return values


def _unparsed(body: bytes, error: ValueError) -> RefusedRequestError:
    try:
        pydantic_core.from_json(body)
    except ValueError:
        return RefusedRequestError.of("malformed_json", f"the body is no JSON: {error}", status=400)
    return RefusedRequestError.of("not_finite", "the body holds NaN or Infinity, which are no JSON and no values")


def batch_of(values: Mapping[str, Any], name: str, most: int) -> list[Any]:
    """The list that a batch holds under its only key.

    Raises:
        RefusedRequestError: it is no list, empty or too long, or something stands beside it.
    """
    found = values[name]
    if len(values) > 1:
        other = next(key for key in values if key != name)
        raise RefusedRequestError.of("unknown_field", f"'{other}' stands beside {name}; it belongs into each of them")
    if not isinstance(found, list):
        raise RefusedRequestError.of("wrong_type", f"{name} wants a list of objects", where=name)
    if not found:
        raise RefusedRequestError.of("empty_batch", f"{name} is empty: there is nothing to do", where=name)
    if len(found) > most:
        raise RefusedRequestError.of(
            "batch_too_large",
            f"{name} has {len(found):,} entries and serve.max_batch is {most:,}; send several requests",
            where=name,
            status=413,
        )
    return found


def read_instant(text: str, where: str) -> datetime:
    """An instant in UTC.

    Raises:
        RefusedRequestError: it is none, says no zone, or lies where logs cannot hold it.
    """
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise RefusedRequestError.of(
            "wrong_type", f"timestamp wants a time such as 2026-01-31T12:00:00Z, found '{text[:60]}'", where=where
        ) from None
    if instant.tzinfo is None:
        raise RefusedRequestError.of(
            "wrong_type", f"timestamp '{text[:60]}' says no zone; add Z or +00:00", where=where
        )
    if not _EARLIEST <= instant < _LATEST:  # windows before and behind it must be instants too
        raise RefusedRequestError.of(
            "out_of_range", f"timestamp wants a time from 1970 to 2261, found '{text[:60]}'", where=where
        )
    return instant.astimezone(UTC)


# --- models


def _decision_type(contract: Contract, clock: str) -> Any:
    action: Any = cast(Any, Literal)[contract.actions.names]
    fields: dict[str, Any] = {
        "observation": observation_type(contract),
        "available_actions": NotRequired[Annotated[list[action], Field(min_length=1)] | None],
        "step": NotRequired[Annotated[int, Field(ge=0, le=_MAX_STEP)] | None],
        "decision_id": NotRequired[Label],
    }
    is_one_step = contract.episodes.kind == "one_step"
    fields["episode_id"] = NotRequired[Label] if is_one_step else Label
    if clock == "request":
        fields["timestamp"] = Label
    if contract.episodes.cluster is not None:
        fields["cluster"] = Label
    keys = key_names(contract)
    if keys:
        key_fields = TypedDict("Keys", dict.fromkeys(keys, NotRequired[Label | None]))  # type: ignore[misc]
        fields["keys"] = NotRequired[_forbidding(key_fields)]
    return _forbidding(TypedDict("Decision", fields))  # type: ignore[operator]


def _outcome_type(contract: Contract, clock: str) -> Any:
    fields: dict[str, Any] = {
        "decision_id": Label,
        # The contract's range holds for what several outcomes make together, which nobody knows yet.
        "reward": NotRequired[Annotated[float, Field(allow_inf_nan=False)] | None],
        "terminated": NotRequired[bool | None],
        "truncated": NotRequired[bool | None],
        "final_observation": NotRequired[observation_type(contract) | None],
        "timestamp": Label if clock == "request" else NotRequired[Label | None],
    }
    return _forbidding(TypedDict("Outcome", fields))  # type: ignore[operator]


def key_names(contract: Contract) -> tuple[str, ...]:
    """Log columns that are hashed at ingest and read as nothing else: what erasures find subjects by."""
    read = {path for name in contract.hashed_columns for path in contract.log_paths(name)}
    cluster = contract.episodes.cluster
    return tuple(name for name in contract.privacy.hash if name not in read and name != cluster)


def observation_type(contract: Contract) -> Any:
    """The typed dictionary of an observation."""
    fields = {}
    for name, feature in contract.features.items():
        kind = _value_type(feature)
        fields[name] = NotRequired[kind | None] if feature.nullable else kind
    return _forbidding(TypedDict("Observation", fields))  # type: ignore[operator]


def _value_type(feature: Feature) -> Any:
    if isinstance(feature, NumericFeature):
        return Annotated[float, Field(ge=feature.min, le=feature.max, allow_inf_nan=False, description=feature.unit)]
    if isinstance(feature, BooleanFeature):
        return bool
    if isinstance(feature, CategoricalFeature):
        known = None if feature.values is None else f"known: {', '.join(feature.values)}"
        return Annotated[
            Annotated[str, Field(min_length=1)] | bool | int | Annotated[float, Field(allow_inf_nan=False)],
            Field(description=known),
        ]
    if isinstance(feature, VectorFeature):
        number = Annotated[float, Field(allow_inf_nan=False)]
        return Annotated[list[number], Field(min_length=feature.length, max_length=feature.length)]
    assert isinstance(feature, ImageFeature)
    image = feature

    def checked(value: list[Any]) -> list[Any]:
        problem = image_problem(image, value)
        if problem is not None:
            raise ValueError(problem)
        return value

    return Annotated[list[Any], AfterValidator(checked)]


def _forbidding(kind: Any) -> Any:
    kind.__pydantic_config__ = _STRICT
    return kind


# --- refusals

_CAUSES = {
    "missing": "missing",
    "extra_forbidden": "unknown_field",
    "finite_number": "not_finite",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
}


def refusal_of(error: ValidationError, name: str) -> RefusedRequestError:
    """What is wrong with the entries of a request; `name` is that of its list, "" where it held only one."""
    problems: dict[str, Problem] = {}
    for found in error.errors(include_url=False, include_context=False):
        row, *rest = found["loc"]
        # A label may be a text, a number or a truth value, and pydantic tells what it misses of each.
        place = ".".join(map(str, rest[:2] if rest[:1] == ["observation"] else rest))
        where = ".".join(part for part in (f"{name}[{row}]" if name else "", place) if part)
        problems.setdefault(where, Problem(_cause_of(found["type"], place), where, _message_of(found)))
    shown = list(problems.values())[:_SHOWN]
    return RefusedRequestError(shown, more=len(problems) - len(shown))


def _cause_of(kind: str, place: str) -> str:
    if place.startswith("available_actions"):
        return {"literal_error": "unknown_action", "too_short": "empty_mask"}.get(kind, "wrong_type")
    return _CAUSES.get(kind, "wrong_type")


def _message_of(found: Any) -> str:
    shown = "" if found["type"] == "missing" else f" (found {str(found['input'])[:60]!r})"
    return f"{found['msg']}{shown}"
