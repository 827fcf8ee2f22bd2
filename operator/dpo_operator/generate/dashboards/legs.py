"""Dashboard row of sweeps: what each leg has reached, and at which drift."""

from dpo_operator.generate.dashboards.panels import Panel, Query, Row
from dpo_operator.generate.dashboards.queries import newest


def row() -> Row:
    """Empty for jobs without a sweep."""
    return Row("Sweep", _panels())


def _by_leg(metric: str) -> tuple[Query, ...]:
    return (Query(newest(metric, by="leg, settings"), "leg {{leg}}: {{settings}}"),)


def _panels() -> tuple[Panel, ...]:
    return (
        Panel(
            "Leg",
            "Leg that is trained now.",
            (Query(newest("dpojob_leg")),),
            kind="stat",
            width=3,
            decimals=0,
        ),
        Panel(
            "Accuracy of the legs",
            "Held-out reward accuracy of the checkpoint that a leg would export. It can be compared between values of beta; margins can't.",
            _by_leg("dpojob_leg_eval_reward_accuracy_ratio"),
            unit="percentunit",
            width=7,
            minimum=0,
            maximum=1,
        ),
        Panel(
            "Margin of the legs",
            "Held-out reward margin, nats. It grows with beta: compare legs of one beta alone. An accuracy with a margin near 0 says nothing.",
            _by_leg("dpojob_leg_eval_reward_margin"),
            width=7,
        ),
        Panel(
            "Drift of the legs",
            "Absolute log-ratio to the reference, nats a token, of the evaluation's answers. Of two legs with one accuracy the one that drifted less "
            "is the better one.",
            _by_leg("dpojob_leg_drift_nats_per_token"),
            width=7,
            minimum=0,
        ),
        Panel(
            "KL of the legs",
            "KL of answers at temperature 1 from the initial policy, nats an answer, where it was sampled.",
            _by_leg("dpojob_leg_kl_nats"),
            width=24,
            minimum=0,
        ),
    )
