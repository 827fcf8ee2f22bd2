"""What can become of a request: the kinds of faults, plans of them, and the wrong answers."""

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

# Answers in the server's place; the request is not carried out.
CODES = {
    "403": (403, "Forbidden"),
    "404": (404, "NotFound"),
    "409": (409, "Conflict"),
    "410": (410, "Expired"),
    "422": (422, "Invalid"),
    "429": (429, "TooManyRequests"),
    "500": (500, "InternalError"),
    "503": (503, "ServiceUnavailable"),
}
ANSWERS = {
    **{kind: f"{code} with a Status {reason}" for kind, (code, reason) in CODES.items()},
    "404-text": "404 with plain text, as of a gateway",
    "not-json": "200 with the page of a gateway",
}
REQUESTS = {
    "drop": "not carried out, the connection closed",
    "delay": "carried out 2 or 35 s later, when the operator has given up",
    "lost": "carried out, no answer",
    "late": "carried out, the answer 32 s later",
    "duplicate": "carried out twice; the second answer is given",
    "truncated": "carried out, half of the answer",
    "old": "a read is answered as it was before",
    "outsider": "somebody changes the object before a write",
    "death-before": "the operator dies before the request",
    "death-after": "the operator dies after the request",
}
WATCHES = {
    "watch-silent": "open watches say nothing any more",
    "watch-twice": "the next ten events come twice",
    "watch-reordered": "the next ten events come in pairs in the wrong order",
    "watch-lost": "the next three events do not come",
    "watch-410": "open watches end with 410 Gone",
    "watch-cut": "the connections of open watches are closed",
}
KINDS: dict[str, str] = {**REQUESTS, **ANSWERS, **WATCHES}
DEATHS = ("death-before", "death-after")


@dataclass(frozen=True)
class Plan:
    """The faults of one life. faults: kind by the index of the request, from 0. replicas: 1, or 2 with a Lease.

    life: `whole`, or `deleted` in the middle of training. A fault that does not fit its request waits for the next that it fits.
    """

    faults: Mapping[int, str]
    seed: int = 0
    replicas: int = 1
    life: str = "whole"

    @classmethod
    def parse(cls, text: str) -> "Plan":
        """From its text form. Raises ValueError for any other text."""
        raw = json.loads(text)
        faults = {int(index): str(kind) for index, kind in raw.pop("faults").items()}
        if unknown := set(faults.values()) - KINDS.keys():
            raise ValueError(f"expected kinds out of {', '.join(KINDS)}; found {', '.join(sorted(unknown))}")
        return cls(faults, **raw)

    def __str__(self) -> str:
        faults = {str(index): self.faults[index] for index in sorted(self.faults)}
        return json.dumps({"faults": faults, "seed": self.seed, "replicas": self.replicas, "life": self.life})

    def without(self, index: int) -> "Plan":
        """The same life with one fault less."""
        return Plan({i: k for i, k in self.faults.items() if i != index}, self.seed, self.replicas, self.life)

    def chance(self, index: int) -> random.Random:
        """Numbers for the details of one fault: they don't depend on the other faults."""
        return random.Random(f"{self.seed}/{index}/{self.faults[index]}")


@dataclass
class Armed:
    """The faults of a plan that wait for their request. happened: those that found it."""

    plan: Plan
    happened: list[tuple[int, str]] = field(default_factory=list)
    requests: int = 0

    def next(self, method: str, *, watch: bool, lease: bool, remembered: bool) -> tuple[int, str] | None:
        """The fault of the request that comes now, and its index in the plan.

        remembered: whether an earlier, different answer to it is known.
        """
        now, self.requests = self.requests, self.requests + 1
        done = {index for index, _ in self.happened}
        for index in sorted(self.plan.faults):
            kind = self.plan.faults[index]
            if index > now or index in done or not _fits(kind, method, watch, lease, remembered):
                continue
            self.happened.append((index, kind))
            return index, kind
        return None


def _fits(kind: str, method: str, watch: bool, lease: bool, remembered: bool) -> bool:
    match kind:
        case "old":
            return remembered and not watch and not lease
        case "outsider":
            return method != "GET" and not lease
        case "late" | "duplicate" | "truncated" | "not-json" | "delay":
            return not watch
        case _:
            return True


@dataclass
class Events:
    """What becomes of the events of one watch."""

    twice: int = 0
    lost: int = 0
    swapped: int = 0
    silent: bool = False
    gone: bool = False
    cut: bool = False
    _kept: Json | None = None

    def fault(self, kind: str) -> None:
        """Begin with this."""
        match kind:
            case "watch-silent":
                self.silent = True
            case "watch-twice":
                self.twice = 10
            case "watch-reordered":
                self.swapped = 10
            case "watch-lost":
                self.lost = 3
            case "watch-410":
                self.gone = True
            case "watch-cut":
                self.cut = True

    def of(self, event: Json) -> list[Json]:
        """The events that come instead of this one."""
        if self.lost:
            self.lost -= 1
            return []
        if self.twice:
            self.twice -= 1
            return [event, event]
        if self.swapped and self._kept is None:
            self.swapped -= 1
            self._kept = event
            return []
        kept, self._kept = self._kept, None
        return [event] if kept is None else [event, kept]


def answer(kind: str, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a wrong answer. path: of the request, without its query."""
    if kind == "404-text":
        return 404, {}, b"404 page not found"
    if kind == "not-json":
        return 200, {}, b"<html><body>Sign in to continue</body></html>"
    code, reason = CODES[kind]
    plural, name = named(path)
    if code == 409 and method == "POST":
        reason = "AlreadyExists"
    status = {
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "injected",
        "details": {"kind": plural, "name": name},
    }  # fmt: skip
    return code, {"Retry-After": "2"} if code == 429 else {}, json.dumps(status).encode()


def named(path: str) -> tuple[str, str]:
    """Plural and name of a URL path; no name for a list."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    parts = parts[2:] if parts[:1] == ["namespaces"] and len(parts) > 2 else parts
    return parts[0], parts[1] if len(parts) > 1 else ""


Lengths = Mapping[tuple[int, str], int]


def single_plan(chance: random.Random, lengths: Lengths) -> Plan:
    """One fault at a random request. lengths: requests of calm lives by replicas and life."""
    return _plan(chance, lengths, [chance.choice(list(KINDS))])


def random_plan(chance: random.Random, lengths: Lengths) -> Plan:
    """Two to four faults, mostly four."""
    return _plan(chance, lengths, [chance.choice(list(KINDS)) for _ in range(chance.choice((2, 3, 4, 4, 4, 4)))])


def covering_plans(chance: random.Random, lengths: Lengths, together: int = 4) -> Iterable[Plan]:
    """Each kind, so many together, in the first half of a life so that it finds its request."""
    kinds = chance.sample(list(KINDS), len(KINDS))
    halves = {key: length // 2 for key, length in lengths.items()}
    for first in range(0, len(kinds), together):
        yield _plan(chance, halves, kinds[first : first + together])


def _plan(chance: random.Random, lengths: Lengths, kinds: list[str]) -> Plan:
    replicas, life = chance.choice(sorted(lengths))
    faults = dict(zip(chance.sample(range(lengths[replicas, life]), len(kinds)), kinds, strict=True))
    return Plan(faults, chance.randrange(10**6), replicas, life)
