"""Judges: who says which of several answers to a prompt is better.

A builtin rule, a reward model, or a server with OpenAI's chat completions API. All answer the same questions in the same form.
"""

from dpo_trainer.judging.contract import BUDGET_SPENT, Judge, Judged, Question, Spent, Tally, by_scores
from dpo_trainer.judging.opening import check_settings, open_judge

__all__ = [
    "BUDGET_SPENT",
    "Judge",
    "Judged",
    "Question",
    "Spent",
    "Tally",
    "by_scores",
    "check_settings",
    "open_judge",
]
