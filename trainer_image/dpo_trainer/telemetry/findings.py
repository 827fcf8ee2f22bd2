"""Findings that hold in this process: what the rules stated, and the warnings, which are reported in the same way."""

from collections.abc import Mapping

from dpo_operator.api.diagnosis import Finding, Severity, worst_first
from dpo_trainer.diagnosis.judge import without_explained

# Of the warnings that prepare and the trainer give; the others are an Info.
SEVERITY: Mapping[str, Severity] = {
    "FirstStepLoss": "Warning",
    "FirstStepMargin": "Warning",
    "NonFinite": "Warning",
    "RolledBack": "Warning",
    "CheckpointRefused": "Warning",
    "AdapterBase": "Warning",
    "JudgeDisagrees": "Warning",
}


def as_finding(code: str, text: str, step: int) -> Finding:
    """A warning as a finding."""
    return Finding(code=code, severity=SEVERITY.get(code, "Info"), step=step, cause=text)


class Findings:
    """stated: what holds by the newest look of the rules, with the warnings known then. warnings: given in this process."""

    def __init__(self) -> None:
        self.stated: list[Finding] = []
        self.warnings: list[Finding] = []

    def warn(self, finding: Finding) -> None:
        """Add a warning; of those with one key, the first one stands for all."""
        if finding.key not in {known.key for known in self.warnings}:
            self.warnings.append(finding)

    def holding(self) -> list[Finding]:
        """All that holds, worst first, with the warnings that no look has seen yet and that nothing explains."""
        known = {finding.key for finding in self.stated}
        later = [warning for warning in list(self.warnings) if warning.key not in known]
        standing = without_explained([*self.stated, *later])
        return worst_first([*self.stated, *(warning for warning in later if warning in standing)])
