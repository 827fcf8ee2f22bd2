"""What rounds have brought so far, for `why` and `status`."""

from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.statusparts.rounds import RoundStatus


def round_lines(status: DPOJobStatus) -> list[str]:
    """A line for each of the newest rounds with figures."""
    return [f"Round {each.round}: {round_figures(each)}." for each in status.rounds]


def round_figures(each: RoundStatus) -> str:
    """The figures of a round that say whether it went well. Drift beside win rates: a judge can be fooled."""
    error = f" ± {each.win_rate_error}" if each.win_rate_error else ""
    known = (
        (
            f"{each.pairs} pairs of {each.prompts} prompts" if each.prompts else "compared only, nothing to train on",
            True,
        ),
        (f"{each.ties} ties", each.ties > 0),
        (f"wins {each.win_rate_previous}{error} against the policy before", each.win_rate_previous),
        (f"{each.win_rate_initial} against the initial one", each.win_rate_initial),
        (f"KL {each.kl_to_initial} nats an answer when it began", each.kl_to_initial),
        (f"share of the answers that ended {each.ended_share}", each.ended_share),
        (f"both orders agree in {each.order_agreement}", each.order_agreement),
        (f"share in which the longer answer won {each.longer_wins}", each.longer_wins),
        (f"{each.judge_calls} calls", each.judge_calls > 0),
        (f"the rounds end: {each.ended}", each.ended),
    )
    return ", ".join(text for text, there in known if there)
