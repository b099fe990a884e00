"""Requests that are refused: a status, a cause that a machine can tell, and words for a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from typing_extensions import TypedDict


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a request.

    Attributes:
        cause: a word of docs/serving.md's table, such as "unknown_action".
        where: the place in the request, such as "decisions[3].observation.cpu"; "" for the whole.
        message: in words.
    """

    cause: str
    where: str
    message: str


class RefusalBody(TypedDict):
    """Why a request was refused; `cause` is that of the first problem, `more` how many are not listed."""

    cause: str
    message: str
    problems: list[Problem]
    more: int


class Refusal(TypedDict):
    """The body of a refusal."""

    error: RefusalBody


class RefusedRequestError(Exception):
    """A request that is not carried out; nothing of it was done.

    Attributes:
        problems: at least one; the first gives the cause.
        status: of the answer.
        more: problems that are not listed.
        retry_after_s: after which it may come again; None where that would not help.
    """

    def __init__(
        self, problems: Sequence[Problem], *, status: int = 422, more: int = 0, retry_after_s: int | None = None
    ) -> None:
        super().__init__(problems[0].message)
        self.problems, self.status, self.more, self.retry_after_s = tuple(problems), status, more, retry_after_s

    @classmethod
    def of(
        cls, cause: str, message: str, *, where: str = "", status: int = 422, retry_after_s: int | None = None
    ) -> RefusedRequestError:
        """With one problem."""
        return cls([Problem(cause, where, message)], status=status, retry_after_s=retry_after_s)

    @property
    def cause(self) -> str:
        """Of the first problem."""
        return self.problems[0].cause

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        listed = [asdict(problem) for problem in self.problems]
        first = self.problems[0]
        message = f"{first.where}: {first.message}" if first.where else first.message
        return {"error": {"cause": first.cause, "message": message, "problems": listed, "more": self.more}}
