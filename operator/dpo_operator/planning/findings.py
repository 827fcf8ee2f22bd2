"""Findings about a job's learning and its data: from rank 0's reports to status, the condition Healthy and events.

Pods belong to tenants: codes, texts and numbers of findings are bounded where they are parsed, and an attempt has at most one
event for each known code and one for all others.
"""

from collections.abc import Iterable, Sequence

from dpo_operator.api import conditions as c
from dpo_operator.api.diagnosis import MAX_FINDINGS, MOST_FINDINGS, Figure, Finding, label, worst_first
from dpo_operator.api.names import Phase
from dpo_operator.api.reports import Progress
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.statusparts.findings import AnnouncedFindings, FindingStatus
from dpo_operator.api.statusparts.legs import LegStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.planning.actions import Event
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.transitions import Moment, changed, mark


def with_findings(
    job: DPOJob, status: DPOJobStatus, seen: Observed, at: Moment
) -> tuple[DPOJobStatus, tuple[Event, ...]]:
    """The status with what the current attempt reports now, and events for codes that it has not had one for.

    A finding that is no longer reported is dropped. What an earlier attempt found stays until this one has looked.
    """
    read = _report(status, seen)
    if read is None or status.phase is None or (read.diagnosed_step is None and not read.findings):
        return status, ()
    others = [known for known in status.findings if known.phase != status.phase]
    # Training repeats what prepare found.
    known_of_others = {_key(finding) for finding in others}
    found = _found(read, status.phase, [known for known in status.findings if known.phase == status.phase])
    found = [finding for finding in found if _key(finding) not in known_of_others]
    findings = worst_first([*others, *found])[:MOST_FINDINGS]
    if findings != status.findings:
        status = changed(status, findings=findings)
    status = _with_health(job, status, at, looked=status.phase == "train" and bool(read.diagnosed_step))
    reported = {finding.code for finding in read.findings}
    return _announced(status, [finding for finding in found if finding.code in reported])


def cleared(status: DPOJobStatus) -> DPOJobStatus:
    """The status of a job that is retried: without what the phase found that begins again."""
    status = status if status.phase == "export" else _without_health(status)
    return changed(status, findings=[finding for finding in status.findings if finding.phase != status.phase])


def of_leg(job: DPOJob, status: DPOJobStatus, leg: LegStatus, at: Moment) -> DPOJobStatus:
    """The status with the health of the leg that is exported, in the place of what the newest leg found."""
    status = changed(status, findings=[finding for finding in status.findings if finding.phase != "train"])
    if not job.spec.diagnosis.enabled:
        return status
    reason = leg.findings[0] if leg.findings else c.NO_FINDINGS
    said = f"Of leg {leg.leg}, which is exported: {', '.join(leg.findings) or 'nothing was found'}."
    return mark(status, at, c.HEALTHY, not leg.unhealthy, reason, said)


def _report(status: DPOJobStatus, seen: Observed) -> Progress | None:
    """Newest report of the current attempt: rank 0's last words, or what it says now."""
    reports: list[Progress | None] = []
    for pod in seen.pods_of(status.phase, status.attempt):
        if pod.index == 0 and pod.exit is not None and (last := pod.exit.termination) is not None:
            reports.append(last.progress)
    reports.append(seen.heartbeat.progress)
    current = (status.phase, status.attempt)
    return next((read for read in reports if read is not None and (read.phase, read.attempt) == current), None)


def _found(read: Progress, phase: Phase, known: Sequence[FindingStatus]) -> list[FindingStatus]:
    """What a report says. A termination message has little room: figures and findings that it left out are taken from what is known."""
    found = [as_status(finding, phase) for finding in read.findings]
    with_figures = {_key(finding): finding.figures for finding in known}
    found = [
        finding if finding.figures else finding.model_copy(update={"figures": with_figures.get(_key(finding), [])})
        for finding in found
    ]
    said = {_key(finding) for finding in found}
    kept = [finding for finding in known if _key(finding) not in said][: read.findings_left_out]
    if read.diagnosed_step is None:
        # Warnings alone: the rules have not looked in this attempt.
        codes = {finding.code for finding in found}
        kept = [finding for finding in known if finding.code not in codes]
    return worst_first([*found, *kept])[:MAX_FINDINGS]


def as_status(finding: Finding, phase: Phase) -> FindingStatus:
    """A finding as the status has it."""
    return FindingStatus(
        code=finding.code,
        severity=finding.severity,
        phase=phase,
        step=finding.step,
        message=finding.sentence,
        setting=finding.setting,
        figures=[_figure(figure) for figure in finding.figures],
    )


def _key(finding: FindingStatus) -> tuple[str, str]:
    """The same for findings that are one."""
    return finding.code, finding.message


def _figure(figure: Figure) -> str:
    limit = "" if figure.limit is None else f" (limit {figure.limit:.4g})"
    return f"{figure.name} {figure.value:.4g}{limit}"


def _with_health(job: DPOJob, status: DPOJobStatus, at: Moment, *, looked: bool) -> DPOJobStatus:
    """The status with the condition Healthy. looked: whether the rules have looked at figures of a step."""
    if not job.spec.diagnosis.enabled:
        return _without_health(status)
    worst = status.findings[0] if status.findings else None
    if worst is not None and worst.severity == "Unhealthy":
        return mark(status, at, c.HEALTHY, False, worst.code, worst.message)
    if not looked and c.find(status.conditions, c.HEALTHY) is None:
        return status
    if worst is None:
        return mark(status, at, c.HEALTHY, True, c.NO_FINDINGS)
    return mark(status, at, c.HEALTHY, True, worst.code, worst.message)


def _without_health(status: DPOJobStatus) -> DPOJobStatus:
    return changed(status, conditions=[each for each in status.conditions if each.type != c.HEALTHY])


def _announced(status: DPOJobStatus, found: Iterable[FindingStatus]) -> tuple[DPOJobStatus, tuple[Event, ...]]:
    assert status.phase is not None
    announced = status.announced_findings
    if announced is None or (announced.phase, announced.attempt) != (status.phase, status.attempt):
        announced = AnnouncedFindings(phase=status.phase, attempt=status.attempt)
    codes, events = list(announced.codes), []
    for finding in found:
        if (code := label(finding.code)) not in codes:
            codes.append(code)
            events.append(Event("Normal" if finding.severity == "Info" else "Warning", finding.code, finding.message))
    if not events:
        return status, ()
    return changed(status, announced_findings=announced.model_copy(update={"codes": codes})), tuple(events)
