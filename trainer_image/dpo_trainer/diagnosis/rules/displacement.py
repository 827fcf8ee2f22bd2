"""LikelihoodDisplacement: the margin grows, and yet the chosen answers become less likely (arXiv 2410.08847)."""

from dpo_operator.api.diagnosis import Code, Finding, Severity
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, number
from dpo_trainer.diagnosis.rules.generations import generations, surprising
from dpo_trainer.diagnosis.saying import finding, other_rate, percent


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """State that chosen answers fall, at two evaluations, or at one where the answers are nearly alike."""
    points = record.points[-2:]
    alike = are_alike(record, limits)
    if not points or not record.starts_level or not _falls(record, -1, limits):
        return None
    if not alike and (len(points) < 2 or not _falls(record, -2, limits)):
        return None
    last = points[-1]
    chosen, rejected = (
        number(last, "logratio_per_token/chosen") or 0.0,
        number(last, "logratio_per_token/rejected") or 0.0,
    )
    heavy = chosen <= -limits["displacementHeavy"]
    found = generations(record, limits)
    broken = found is not None and surprising(found, limits)
    severity: Severity = "Info"
    if alike:
        severity = "Unhealthy" if heavy or broken else "Warning"
    elif heavy and broken:
        # Without harm to the samples it is usual that both fall (docs/methods).
        severity = "Warning"
    share = record.split("train").get("near_identical")
    why = (
        f": in {percent(share or 0)} of the pairs the answers are nearly the same, and what lowers one lowers both"
        if alike
        else ", together with the rejected ones"
    )
    return finding(
        Code.LIKELIHOOD_DISPLACEMENT, severity, record.step,
        f"The margin is {number(last, 'rewards/margins') or 0:.2g}, and yet the chosen answers became {-chosen:.2g} nats a token less likely "
        f"(the rejected {-rejected:.2g}){why}.",
        [("logratio_per_token/chosen", chosen, -limits["displacementFall"]), ("logratio_per_token/rejected", rejected, None),
         ("near_identical", share, limits["displacementAlike"])],
        *_advice(record),
    )  # fmt: skip


def are_alike(record: RunRecord, limits: Limits) -> bool:
    """Whether the answers of most training pairs are nearly the same."""
    return bool((record.split("train").get("near_identical") or 0.0) >= limits["displacementAlike"])


def by_similar_answers(record: RunRecord, limits: Limits) -> bool:
    """Whether answers that are nearly alike displaced the chosen ones: then broken samples are a consequence."""
    return are_alike(record, limits) and bool(record.points) and record.starts_level and _falls(record, -1, limits)


def _falls(record: RunRecord, index: int, limits: Limits) -> bool:
    point = record.points[index]
    chosen, rejected = number(point, "logratio_per_token/chosen"), number(point, "logratio_per_token/rejected")
    margin = number(point, "rewards/margins")
    if chosen is None or rejected is None or margin is None or margin <= 0:
        return False
    return chosen < -limits["displacementFall"] and abs(chosen) >= limits["displacementRatio"] * abs(rejected)


def _advice(record: RunRecord) -> tuple[str, str]:
    weight = record.spec.method.likelihood_weight
    if weight > 0:
        return (
            "training.learningRate",
            f"Smaller steps, {other_rate(record.spec, 0.1)}, or leave out pairs that hardly differ.",
        )
    rate = other_rate(record.spec, 0.1)
    return (
        "method.nllWeight",
        f"Keep the chosen answers likely: try method.nllWeight 1 instead of 0; or {rate}, and leave out pairs that hardly differ.",
    )
