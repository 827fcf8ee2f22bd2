"""Whether a judge agrees with the labels of the evaluation pairs: a reward model in a form that it was not trained on fails here, and nowhere else."""

from collections.abc import Callable

import numpy as np

from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.judging import Judge, Question
from dpo_trainer.prepare.record import Prepared
from dpo_trainer.runtime.workdir import WorkDir

# Pairs that are looked at: the standard error is then 0.035.
MOST = 200


def disagreement(judge: Judge, work: WorkDir, decode: Callable[[np.ndarray], str], alive: Callable[[], None]) -> str:
    """What is wrong when a judge ranks half of the evaluation pairs as their labels say, or fewer; "" when nothing is.

    Nothing is said where some of them are chats: the work folder has their tokens alone, and a judge with another chat template needs the messages.
    """
    if not (work.eval_data / "meta.json").is_file() or not _are_plain(work):
        return ""
    data = PairDataset.open(work.eval_data)
    pairs = [
        pair
        for pair in (data[number] for number in range(min(MOST, len(data))))
        if len(pair.chosen) and len(pair.rejected)
    ]
    questions = [
        Question(
            decode(pair.prompt),
            (decode(pair.chosen), decode(pair.rejected)),
            (len(pair.chosen), len(pair.rejected)),
        )
        for pair in pairs
    ]
    judged = [one for one in judge.judge(questions, alive) if not one.problem]
    right = sum(one.best == 0 for one in judged)
    if not judged or right > len(judged) / 2:
        return ""
    return (
        f"the reward model ranks {right} of {len(judged)} evaluation pairs as their labels say, no more than a coin: it may be of other data, or was "
        "trained with a chat template that these prompts do not go through"
    )


def _are_plain(work: WorkDir) -> bool:
    """Whether the evaluation pairs are plain text as a whole; not where an earlier version prepared them, which did not say."""
    try:
        prompts = Prepared.read(work).prompts
    except (OSError, ValueError):
        return False
    return prompts is not None and prompts.plain_evaluation
