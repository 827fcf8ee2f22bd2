"""What a run's figures and findings say about its learning, as lines."""

from dpo_operator.api.status import FinalMetrics, ProgressStatus
from dpo_operator.api.statusparts.findings import FindingStatus
from dpo_operator.explain.case import Case
from dpo_operator.explain.waits import Lines, in_job_file


def worst(case: Case) -> FindingStatus | None:
    """The first finding that is more than a note; None without one."""
    return next((finding for finding in case.status.findings if finding.severity != "Info"), None)


def finding_lines(case: Case) -> Lines:
    """Each finding with its sentence and its figures beside their limits."""
    return [line for finding in case.status.findings for line in _finding(finding)]


def _finding(finding: FindingStatus) -> Lines:
    where = (
        "in the data"
        if finding.phase == "prepare"
        else f"at step {finding.step}"
        if finding.step
        else "before the first step"
    )
    lines = [f"{finding.code} ({finding.severity}, {where}): {finding.message}"]
    if finding.figures:
        lines.append(f"  measured: {', '.join(finding.figures)}")
    return lines


def suggestions(case: Case) -> Lines:
    """The field to change for the worst finding."""
    bad = worst(case)
    return [] if bad is None else suggestion(case, bad)


def suggestion(case: Case, finding: FindingStatus) -> Lines:
    """The field to change for a finding; nothing where it names none."""
    if not finding.setting:
        return []
    field = f"spec.{finding.setting.removeprefix('spec.')}"
    return [in_job_file(case, field, f"Do what {finding.code} suggests")]


def figures(case: Case) -> Lines:
    """The newest figures in one line: margin always beside accuracy, because accuracy says nothing about size."""
    progress, final = case.status.progress, case.status.final_metrics
    found: ProgressStatus | FinalMetrics | None = final or progress
    if found is None:
        return []
    steps = f"step {found.step}"
    if progress is not None and progress.max_steps:
        steps += f" of {progress.max_steps}"
    if progress is not None and final is None:
        steps += "".join(
            f", {text}" for text in (progress.percent, progress.activity and f"at: {progress.activity}") if text
        )
    lines = [f"Progress: {steps}."] if case.status.phase in ("train", "export") else []
    accuracy = (progress.accuracy, progress.eval_accuracy) if progress is not None else (None, None)
    for name, values in (
        ("Training", (found.loss, found.reward_margin, accuracy[0] or found.reward_accuracy)),
        ("Held out", (found.eval_loss, found.eval_reward_margin, accuracy[1] or found.eval_reward_accuracy)),
    ):
        known = [
            f"{what} {value}"
            for what, value in zip(("loss", "margin", "accuracy"), values, strict=True)
            if value is not None
        ]
        if known:
            lines.append(f"{name}: {', '.join(known)}.")
    return lines
