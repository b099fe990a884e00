"""All that is to be seen of a night's drift check, as the drift page and the evaluation report show it."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from reports.drift_pictures import (
    DistributionPanel,
    column_picture,
    distribution_panels,
    furthest_of,
    heat_of,
    night_words,
    timeline,
)
from reports.drift_words import (
    Verdict,
    folded_words,
    joint_words,
    ranked,
    since_of,
    slow_lines,
    times_words,
    verdict_of,
)
from reports.heat import Heat
from reports.night_checks import NightCheck, NightlyChecks, changes_of_champion
from reports.pictures import Picture

_COLUMNS = 12


@dataclass(frozen=True)
class DriftView:
    """Words and pictures of a check; what has nothing to show is None or empty.

    Attributes:
        columns: a bar for each of the columns that moved most; `folded` says what became of the others.
        n_judged: columns that could be judged.
        furthest: the column furthest from what it is allowed, and how many times that in words.
        since: first night of what moved, ISO date, and the column that moved first; both "" where no night is known.
        older_nights: whether the heatmap has nights that were compared with an older reference.
        nights: of the checks up to this one, the newest first: night, what acted, what was decided, and in words.
        since_then: what happened to the champion after the check.
    """

    check: NightCheck
    verdict: Verdict
    columns: Picture
    folded: str
    n_judged: int
    furthest: tuple[str, str]
    since: tuple[str, str]
    heat: Heat | None
    older_nights: bool
    distributions: tuple[DistributionPanel, ...]
    joint: tuple[tuple[bool, str], ...]
    slow: tuple[str, ...]
    timeline: Markup | None
    nights: tuple[tuple[NightCheck, str], ...]
    since_then: str


def drift_view(checks: NightlyChecks) -> DriftView:
    """What there is to see of a check and of those before it."""
    report = checks.newest.report
    row = (*checks.past, checks.newest)
    changes = changes_of_champion(row, checks.promotions)
    name, times = furthest_of(checks.newest)
    return DriftView(
        check=checks.newest,
        verdict=verdict_of(checks.newest),
        columns=column_picture(report, _COLUMNS) if report else Picture(()),
        folded=folded_words(report, _COLUMNS) if report else "",
        n_judged=len(ranked(report)) if report else 0,
        furthest=(name, times_words(times)) if times is not None else ("", "none"),
        since=since_of(report),
        heat=heat_of(report, row) if report else None,
        older_nights=_has_older_nights(checks),
        distributions=distribution_panels(report) if report else (),
        joint=tuple((test.drifted, joint_words(test)) for test in report.joint) if report else (),
        slow=slow_lines(report) if report else (),
        timeline=timeline(row, changes),
        nights=tuple((check, night_words(check, changes.get(check.night, ""))) for check in reversed(row)),
        since_then=changes.get("", ""),
    )


def _has_older_nights(checks: NightlyChecks) -> bool:
    nightly = checks.newest.report.nightly if checks.newest.report else None
    earlier = [check.live_nights[0] for check in checks.past if check.live_nights]
    return nightly is not None and bool(nightly.nights) and any(night < nightly.nights[0] for night in earlier)
