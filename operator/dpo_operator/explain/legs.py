"""What the legs of a sweep have brought so far, for `why`, `status` and `dpo run`."""

from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.statusparts.legs import LegStatus


def leg_lines(status: DPOJobStatus) -> list[str]:
    """A line for each leg that has ended."""
    return [f"Leg {each.leg} ({each.settings}): {leg_figures(each)}." for each in status.legs]


def leg_figures(each: LegStatus) -> str:
    """The figures by which legs are compared. Margins stand last: they grow with beta."""
    known = (
        ("ended as unhealthy", each.outcome == "Unhealthy"),
        (f"{each.steps} steps", True),
        (f"accuracy {each.accuracy}", each.accuracy),
        (f"loss {each.loss}", each.loss),
        (f"drift {each.drift} nats a token", each.drift),
        (f"KL {each.kl} nats an answer", each.kl),
        (f"margin {each.margin}", each.margin),
        (f"found {', '.join(each.findings)}", each.findings),
        ("exported", each.chosen),
    )
    return ", ".join(text for text, there in known if there)
