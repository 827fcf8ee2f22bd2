"""Series of a job's rounds: figures of those that its status keeps, by round."""

from collections.abc import Iterator, Sequence

from dpo_operator.api.status import DPOJobStatus

Rows = list[tuple[tuple[str, ...], float]]
Statuses = Sequence[tuple[tuple[str, str], DPOJobStatus]]

# Name of the series, its text, and the field of status.rounds.
FIGURES: tuple[tuple[str, str, str], ...] = (
    ("dpojob_round_pairs", "Pairs that a round trains on.", "pairs"),
    ("dpojob_round_ties", "Judged prompts of a round without a better answer.", "ties"),
    ("dpojob_round_judge_calls", "Requests of a round to the judge's endpoint.", "judge_calls"),
    ("dpojob_round_judge_tokens", "Tokens of these requests and their verdicts.", "judge_tokens"),
    ("dpojob_round_generation_tokens", "Tokens of a round's answers.", "generation_tokens"),
    ("dpojob_round_score", "Mean score of a round's answers.", "score_mean"),
    ("dpojob_round_ended_ratio", "Share of a round's answers that the model ended itself.", "ended_share"),
    ("dpojob_round_kl_nats", "KL of the policy that answered in a round from the initial one, nats an answer.", "kl_to_initial"),
    ("dpojob_round_own_nll_nats", "Negative log-likelihood of its answers under itself, nats a token.", "own_nll"),
    ("dpojob_round_order_agreement_ratio", "Share of a judge's comparisons with the same verdict in both orders.", "order_agreement"),
    ("dpojob_round_longer_wins_ratio", "Share of a judge's verdicts for the longer answer.", "longer_wins"),
)  # fmt: skip
# What a win rate is against, and the field of status.rounds.
WIN_RATES = (("previous", "win_rate_previous"), ("initial", "win_rate_initial"), ("initial, equal lengths", "win_rate_length_controlled"))  # fmt: skip


def families(statuses: Statuses) -> Iterator[tuple[str, str, tuple[str, ...], Rows]]:
    """Name, text, labels beside those of the job, and rows of each family."""
    rows = [(labels, float(status.round)) for labels, status in statuses if status.round]
    yield "dpojob_round", "Round of the current phase; absent for phases of the whole job.", (), [*rows]
    for name, text, field in FIGURES:
        yield name, text, ("round",), _of_each(statuses, field)
    rates = [
        ((*labels, against), number) for against, field in WIN_RATES for labels, number in _of_each(statuses, field)
    ]
    text = "Share of prompts on which the policy that a round trained beats another one, ties half."
    yield "dpojob_round_win_rate_ratio", text, ("round", "against"), rates


def _of_each(statuses: Statuses, field: str) -> Rows:
    found = [
        ((*labels, str(each.round)), getattr(each, field)) for labels, status in statuses for each in status.rounds
    ]
    return [(labels, float(value)) for labels, value in found if value is not None]
