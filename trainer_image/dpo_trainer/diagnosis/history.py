"""diagnosis.json: what holds now, and everything that was stated before, continued across restarts."""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dpo_operator.api.diagnosis import CODES, SEVERITIES, Finding, worst_first
from dpo_trainer.diagnosis.judge import without_explained
from dpo_trainer.runtime.files import commit
from dpo_trainer.runtime.workdir import WorkDir

# A limit on a file that grows: findings that no longer hold, oldest first to go.
_MOST = 256


class Stated(BaseModel):
    """A finding as it was first stated. ended: step from which it no longer held; None while it holds."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    finding: Finding
    ended: Annotated[int, Field(ge=0)] | None = None


class Diagnosis(BaseModel):
    """Content of diagnosis.json. step: newest step that was looked at. findings: what holds, worst first. history: all, oldest first."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: Literal[1] = 1
    step: int = Field(default=0, ge=0)
    findings: tuple[Finding, ...] = ()
    history: tuple[Stated, ...] = ()

    @classmethod
    def read(cls, work: WorkDir) -> "Diagnosis":
        """The file in a work folder; empty where there is none, or another version's. Raises OSError."""
        try:
            return cls.model_validate_json(work.diagnosis.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return cls()

    def write(self, work: WorkDir) -> None:
        """Write the file atomically. Raises OSError."""
        commit(work.diagnosis, (json.dumps(self._document(), indent=1, ensure_ascii=False) + "\n").encode())

    @property
    def warnings(self) -> list[Finding]:
        """Warnings of prepare and of the trainer that were given so far: no rule looks at them again."""
        return [one.finding for one in self.history if one.ended is None and one.finding.code not in CODES]

    def cut(self, step: int) -> "Diagnosis":
        """What was known at an earlier step, as a run knows that resumes from there."""
        kept = tuple(
            Stated(finding=one.finding, ended=None if one.ended is not None and one.ended > step else one.ended)
            for one in self.history
            if one.finding.step <= step
        )
        return Diagnosis(step=min(step, self.step), findings=_current(kept), history=kept)

    def at(self, step: int, holding: Iterable[Finding]) -> tuple["Diagnosis", list[Finding]]:
        """The record after a look at a step, and the findings that are new or became worse. holding: what holds there.

        A finding that still holds keeps its first step and its words, so that the same sentence is everywhere. When its severity changes
        it is stated again, with its first step.
        """
        now = {finding.key: finding for finding in reversed(list(holding))}
        history: list[Stated] = []
        new: list[Finding] = []
        known = set()
        for one in self.history:
            key = one.finding.key
            found = now.get(key)
            if one.ended is not None:
                history.append(one)
            elif found is None:
                history.append(Stated(finding=one.finding, ended=step))
            else:
                known.add(key)
                if found.severity == one.finding.severity:
                    history.append(one)
                else:
                    changed = found.model_copy(update={"step": one.finding.step})
                    history.append(Stated(finding=changed))
                    if SEVERITIES.index(found.severity) < SEVERITIES.index(one.finding.severity):
                        new.append(changed)
        for key, finding in now.items():
            if key not in known:
                history.append(Stated(finding=finding))
                new.append(finding)
        ended = [one for one in history if one.ended is not None]
        dropped = {id(one) for one in ended[: max(0, len(ended) - _MOST)]}
        kept = tuple(one for one in history if id(one) not in dropped)
        return Diagnosis(step=step, findings=_current(kept), history=kept), worst_first(new)

    def _document(self) -> dict[str, Any]:
        def plain(finding: Finding) -> dict[str, Any]:
            return finding.model_dump(mode="json") | {"sentence": finding.sentence}

        history = [{"finding": plain(one.finding), "ended": one.ended} for one in self.history]
        return {"version": 1, "step": self.step, "findings": [plain(f) for f in self.findings], "history": history}


def _current(history: Iterable[Stated]) -> tuple[Finding, ...]:
    return tuple(without_explained(one.finding for one in history if one.ended is None))
