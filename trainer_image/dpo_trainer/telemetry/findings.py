"""Findings that hold in this process: what the rules stated, and the warnings, which take the same way."""

from collections.abc import Mapping

from dpo_operator.api.diagnosis import Finding, Severity
from dpo_trainer.diagnosis.judge import without_explained

# Of the warnings that prepare and the trainer give; the others are worth knowing and no more.
SEVERITY: Mapping[str, Severity] = {
    "FirstStepLoss": "Warning",
    "FirstStepMargin": "Warning",
    "NonFinite": "Warning",
    "RolledBack": "Warning",
    "CheckpointRefused": "Warning",
    "AdapterBase": "Warning",
}


class Findings:
    """stated: what holds by the newest look of the rules, with the warnings known then. warnings: given in this process."""

    def __init__(self) -> None:
        self.stated: list[Finding] = []
        self.warnings: list[Finding] = []

    def warn(self, code: str, text: str, step: int) -> None:
        """Add a warning; of a code that was given before, the first one stands for all."""
        finding = Finding(code=code, severity=SEVERITY.get(code, "Info"), step=step, cause=text)
        if finding.key not in {known.key for known in self.warnings}:
            self.warnings.append(finding)

    def holding(self) -> list[Finding]:
        """All that holds, worst first, without what others explain."""
        known = {finding.key for finding in self.stated}
        return without_explained([*self.stated, *(one for one in list(self.warnings) if one.key not in known)])
