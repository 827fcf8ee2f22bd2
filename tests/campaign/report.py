"""The table of a campaign, and the shortest plan of a violation."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.table import Table

from tests.campaign.faults import KINDS, Plan
from tests.campaign.invariants import Life, violated

Happened = list[tuple[int, str]]
Live = Callable[[Plan], tuple[Life, Happened]]


@dataclass
class Campaign:
    """Lives so far. live: the engine. calm: lives without a fault by replicas and life. broken: plans with what they violate."""

    live: Live
    injections: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    broken: list[tuple[Plan, list[str]]] = field(default_factory=list)
    lives: int = 0
    replicas: Counter[int] = field(default_factory=Counter)
    calm: dict[tuple[int, str], Life] = field(default_factory=dict)

    def calm_life(self, replicas: int, life: str) -> Life:
        """The life without a fault."""
        if (replicas, life) not in self.calm:
            self.calm[replicas, life] = self.live(Plan({}, 0, replicas, life))[0]
        return self.calm[replicas, life]

    def try_out(self, plan: Plan) -> list[str]:
        """Live it. Returns what it violates."""
        calm = self.calm_life(plan.replicas, plan.life)
        life, happened = self.live(plan)
        found = violated(life, calm, len(plan.faults))
        kinds = [kind for _, kind in happened]
        self.lives += 1
        self.injections.update(kinds)
        self.replicas[plan.replicas] += len(kinds)
        if found:
            self.violations.update(set(kinds))
            self.broken.append((plan, found))
        return found

    def shortest(self, plan: Plan) -> tuple[Plan, list[str]]:
        """A plan that violates something with no fault too many: faults are left out as long as anything is still violated."""
        calm = self.calm_life(plan.replicas, plan.life)
        found = violated(self.live(plan)[0], calm, len(plan.faults))
        for index in sorted(plan.faults):
            less = plan.without(index)
            if less.faults and (still := violated(self.live(less)[0], calm, len(less.faults))):
                plan, found = less, still
        return plan, found

    def table(self) -> Table:
        """Kind, what it does, injections, lives with it that violate something."""
        table = Table("kind", "what", "injections", "violations")
        for kind, what in KINDS.items():
            table.add_row(kind, what, str(self.injections[kind]), str(self.violations[kind]))
        return table

    def markdown(self, command: str) -> str:
        """The same for docs/faults.md."""
        day = time.strftime("%Y-%m-%d", time.gmtime())
        lines = [
            f"{day}, `{command}`: {self.summary()}",
            "",
            "| Kind | What | Injections | Violations |",
            "|---|---|---|---|",
            *(f"| {k} | {what} | {self.injections[k]:,} | {self.violations[k]} |" for k, what in KINDS.items()),
        ]
        return "\n".join(lines)

    def summary(self) -> str:
        """One line."""
        kinds = sum(1 for count in self.injections.values() if count)
        spread = ", ".join(
            f"{self.replicas[n]:,} with {n} replica{'s' if n > 1 else ''}" for n in sorted(self.replicas)
        )
        return (
            f"{self.lives:,} lives, {self.injections.total():,} injections ({spread}) of {kinds} kinds, "
            f"{len(self.broken)} lives that violate an invariant"
        )
