"""WrongReference: before the first update, policy and reference are one model, so that log-ratios are 0."""

import math

from dpo_operator.api.diagnosis import Code, Finding
from dpo_operator.api.rules.thresholds import Limits
from dpo_trainer.diagnosis.record import RunRecord, drift_of, number
from dpo_trainer.diagnosis.saying import finding

# Dropout in adapters moves the policy of the first step a little.
_DROPOUT = 10.0
# Tokens from which rounding is within the limit. It grows with the square root of an answer's length, so it is larger a token in shorter ones.
_LONG = 25.0


def check(record: RunRecord, limits: Limits) -> Finding | None:
    """State that the reference is not the model that training starts from."""
    first = record.first
    if first is None or record.moved or not record.spec.method.needs_reference:
        return None
    drift = drift_of(first)
    if (other := record.spec.model.reference) is not None:
        limit = limits["wrongReferenceOther"]
        if drift is None or drift < limit:
            return None
        return finding(
            Code.WRONG_REFERENCE, "Unhealthy", 1,
            f"The reference {other.name[:60]} finds the answers {drift:.2g} nats a token more or less likely than the model that "
            "training starts from: it is an unrelated model, and the loss pulls towards it.",
            [("logratio_abs_per_token", drift, limit)],
            "model.reference", "Leave model.reference out, so that the reference is the model before training.",
        )  # fmt: skip
    factor = _DROPOUT if record.spec.adapter.dropout > 0 else 1.0
    loss, known = number(first, "loss"), number(first, "initial_loss")
    usual, far = factor * limits["wrongReferenceLogRatio"], factor * limits["wrongReferenceLoss"]
    rounding = usual * math.sqrt(_LONG / (_tokens(record) or _LONG))
    moved = max(usual, rounding)
    off = None if loss is None or known is None else abs(loss - known) / max(1.0, abs(known))
    if drift is None or drift < moved:
        # A large beta makes much of rounding, too.
        more = drift is None or _tokens(record) is None or drift >= rounding
        if off is None or off < far or not more:
            return None
    return finding(
        Code.WRONG_REFERENCE, "Unhealthy", 1,
        f"Before the first update the loss is {loss or 0:.4g} and not {known or 0:.4g}, and policy and reference differ by "
        f"{drift or 0:.2g} nats a token: the reference is not the model that training starts from.",
        [("logratio_abs_per_token", drift, moved), ("loss", loss, known)],
        "model.reference" if not record.spec.adapter.dropout else "adapter.dropout",
        "Delete the folder reference in the work folder, so that its log-probs are computed again from this model."
        if not record.spec.adapter.dropout
        else f"Try adapter.dropout 0 instead of {record.spec.adapter.dropout:g}.",
    )  # fmt: skip


def _tokens(record: RunRecord) -> float | None:
    """Median tokens of the training answers, chosen or rejected, whichever is less; None where prepare left none."""
    known = [record.usual_tokens(side) for side in ("chosen", "rejected")]
    return min((tokens for tokens in known if tokens is not None), default=None)
