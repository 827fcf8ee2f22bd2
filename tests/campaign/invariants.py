"""What must be true of every life, whatever was injected into it. The letters are those of tests/faults/matrix.py."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# Each fault may cause an event or two.
EVENTS_PER_FAULT = 3


@dataclass
class Life:
    """What was seen of one life.

    ending: of the DPOJob and its children, as tests compare them; empty for a life that was cut short. twice: what an onlooker
    saw that may not be. made: creations that were accepted, by kind and name. left: of the job, after its deletion. strangers:
    objects of others, as kind/name, and whether they are as they were. claims: UIDs of the job's claim, first and last. given: digests
    that each attempt was given as those of recorded checkpoints. events: about the DPOJob. requests: until its deletion was
    seen. seconds: to its end. overdue: why it did not end.
    """

    ending: dict[str, Any]
    twice: list[str] = field(default_factory=list)
    made: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)
    strangers: dict[str, bool] = field(default_factory=dict)
    claims: list[str] = field(default_factory=list)
    given: dict[str, list[str]] = field(default_factory=dict)
    events: int = 0
    requests: int = 0
    seconds: float = 0.0
    overdue: str = ""


def violated(life: Life, calm: Life, faults: int) -> list[str]:
    """Sentences, each with the letter of its invariant; empty when all hold. calm: the same life without a fault."""
    found = [f"A: {each}" for each in life.twice]
    found += [f"B: {name} was made {count} times" for name, count in life.made.items() if count > 1]
    found += [f"B: {name} is left after the deletion" for name in life.left]
    found += [f"B: {name} of somebody else was changed" for name, kept in life.strangers.items() if not kept]
    if life.given != calm.given:
        found.append(f"C: attempts were given the checkpoints {life.given}, in a calm life {calm.given}")
    if life.overdue:
        found.append(f"E: {life.overdue}")
    for key in calm.ending:
        if life.ending.get(key) != calm.ending[key]:
            letter = "F" if key == "state" else "D"
            found.append(f"{letter}: {key} is {life.ending.get(key)}, in a calm life {calm.ending[key]}")
    if life.events > calm.events + EVENTS_PER_FAULT * faults:
        found.append(f"E: {life.events} events, in a calm life {calm.events}")
    if len(set(life.claims)) > 1 or len(life.claims) != len(calm.claims):
        found.append(f"F: the claim's UIDs were {life.claims}")
    return found
