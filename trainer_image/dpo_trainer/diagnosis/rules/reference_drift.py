"""ReferenceDrift: what the policy writes is far from what the reference would write."""

from dpo_operator.api.diagnosis import Code, Finding
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, number
from dpo_trainer.diagnosis.rules.generations import generations
from dpo_trainer.diagnosis.saying import finding, instead, other_rate


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """Report the distance. Alone it is an Info: a low beta asks for it; Gibberish states where it did harm."""
    if not record.points or not record.starts_level:
        return None
    found = generations(record, limits)
    samples = found.value("t1/logratio_per_token") if found else None
    data = number(record.points[-1], "logratio_abs_per_token")
    far = samples is not None and samples >= limits["driftSamples"]
    if not far and (data is None or data < limits["driftData"]):
        return None
    beta = record.spec.method.strength
    words = (
        f"The policy's own answers are {samples:.2g} nats a token more likely under it than under the reference"
        if far
        else f"The answers in the data moved {data:.2g} nats a token from the reference"
    )
    higher = instead("method.beta", min(100.0, float(f"{beta * 3:.1g}")), beta)
    return finding(
        Code.REFERENCE_DRIFT, "Info", record.step,
        f"{words}: with beta {beta:g} little holds the policy back.",
        [("samples/t1/logratio_per_token", samples, limits["driftSamples"]), ("samples/t1/kl", found.value("t1/kl") if found else None, None),
         ("logratio_abs_per_token", data, limits["driftData"])],
        "method.beta", f"If the answers suffer, {higher}, or {other_rate(record.spec, 0.3)}.",
    )  # fmt: skip
