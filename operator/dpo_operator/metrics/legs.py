"""Series of a sweep: figures of the legs that have ended, by leg and its settings."""

from collections.abc import Iterator, Sequence

from dpo_operator.api.status import DPOJobStatus

Rows = list[tuple[tuple[str, ...], float]]
Statuses = Sequence[tuple[tuple[str, str], DPOJobStatus]]

# Name of the series, its text, and the field of status.legs.
FIGURES: tuple[tuple[str, str, str], ...] = (
    ("dpojob_leg_steps", "Optimizer steps of a sweep's leg.", "steps"),
    ("dpojob_leg_eval_loss", "Loss of the evaluation of the checkpoint that a leg would export; comparable within one method and beta.", "loss"),
    ("dpojob_leg_eval_reward_accuracy_ratio", "Its reward accuracy.", "accuracy"),
    ("dpojob_leg_eval_reward_margin", "Its reward margin, nats; it grows with beta.", "margin"),
    ("dpojob_leg_drift_nats_per_token", "Its absolute log-ratio to the reference for each token of the evaluation's answers.", "drift"),
    ("dpojob_leg_kl_nats", "Its KL from the initial policy, from samples at temperature 1, nats an answer.", "kl"),
    ("dpojob_leg_unhealthy", "1 for a leg with an Unhealthy finding.", "unhealthy"),
    ("dpojob_leg_chosen", "1 for the leg that is exported.", "chosen"),
)  # fmt: skip


def families(statuses: Statuses) -> Iterator[tuple[str, str, tuple[str, ...], Rows]]:
    """Name, text, labels beside those of the job, and rows of each family."""
    rows = [(labels, float(status.leg)) for labels, status in statuses if status.leg]
    yield "dpojob_leg", "Leg of the current training; absent for phases of the whole job.", (), [*rows]
    for name, text, field in FIGURES:
        found = [
            ((*labels, str(each.leg), each.settings), getattr(each, field))
            for labels, status in statuses
            for each in status.legs
        ]
        yield name, text, ("leg", "settings"), [(labels, float(value)) for labels, value in found if value is not None]
