"""Dashboard row of jobs with rounds: does the policy win, at which drift, and what does the judge say."""

from dpo_operator.generate.dashboards.panels import Panel, Query, Row
from dpo_operator.generate.dashboards.queries import newest


def row() -> Row:
    """Empty for jobs without rounds."""
    return Row("Rounds", (*_policy(), *_judge()))


def _by_round(metric: str) -> Query:
    return Query(newest(metric, by="round"), "round {{round}}")


def _policy() -> tuple[Panel, ...]:
    return (
        Panel(
            "Round",
            "Round of the current phase.",
            (Query(newest("dpojob_round")),),
            kind="stat",
            width=3,
            decimals=0,
        ),
        Panel(
            "Win rate",
            "Share of the held-out prompts on which the policy of a round beats the one before and the initial one, by the judge; 0.5 is no "
            "difference. A judge can be fooled: read it beside the drift and the answers.",
            (Query(newest("dpojob_round_win_rate_ratio", by="round, against"), "round {{round}} against {{against}}"),),
            unit="percentunit",
            width=7,
            minimum=0,
            maximum=1,
        ),
        Panel(
            "Drift from the initial policy",
            "KL of the answers, nats an answer. A win rate that is bought with much drift is most likely a judge that was fooled.",
            (_by_round("dpojob_round_kl_nats"),),
            width=7,
            minimum=0,
        ),
        Panel(
            "Answers",
            "Share of the answers that the model ended itself, and their negative log-likelihood under it, nats a token. A fall of the first or "
            "a rise of the second is gibberish on its way.",
            (
                Query(newest("dpojob_round_ended_ratio", by="round"), "round {{round}}, ended"),
                Query(newest("dpojob_round_own_nll_nats", by="round"), "round {{round}}, NLL"),
            ),
            width=7,
            minimum=0,
        ),
    )


def _judge() -> tuple[Panel, ...]:
    return (
        Panel(
            "Pairs",
            "Pairs that each round trains on, and judged prompts without a better answer.",
            (
                _by_round("dpojob_round_pairs"),
                Query(newest("dpojob_round_ties", by="round"), "round {{round}}, ties"),
            ),
            minimum=0,
            decimals=0,
        ),
        Panel(
            "What the judge does",
            "Agreement: comparisons with the same verdict in both orders; near 0.5 it guesses. Longer: verdicts for the longer answer; near 1 it "
            "counts words. Score: mean of the answers, of judges that score.",
            (
                Query(newest("dpojob_round_order_agreement_ratio", by="round"), "round {{round}}, agreement"),
                Query(newest("dpojob_round_longer_wins_ratio", by="round"), "round {{round}}, longer"),
                Query(newest("dpojob_round_score", by="round"), "round {{round}}, score"),
            ),
        ),
        Panel(
            "What rounds cost",
            "Tokens of the answers, tokens of the judge's requests and verdicts, and its requests.",
            (
                Query(newest("dpojob_round_generation_tokens", by="round"), "round {{round}}, answers"),
                Query(newest("dpojob_round_judge_tokens", by="round"), "round {{round}}, judge"),
                Query(newest("dpojob_round_judge_calls", by="round"), "round {{round}}, requests"),
            ),
            minimum=0,
        ),
    )
