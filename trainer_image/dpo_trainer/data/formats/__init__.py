"""Normalize dataset rows of any supported format into pairs or Rejections.

Seven formats are read. `pairs`: prompt, chosen and rejected as text. `messages`: the same as chat messages, or whole
conversations in chosen and rejected that share their beginning. `dialogue`: the "\\n\\nHuman: … \\n\\nAssistant: …" texts
of Anthropic's HH-RLHF (arXiv 2204.05862). `scored`: several answers with scores; the best is chosen, the worst rejected.
`votes`: two answers and annotators' votes. `unpaired`: one answer and whether it is desirable (KTO, arXiv 2402.01306).
`rated`: one answer with its score in each row; rows of one prompt make a pair. The answers of the last four are text, messages, whole conversations or dialogues, whatever a row has.

Nothing here raises on a row, whatever it holds: a row becomes a pair or a Rejection.
"""

from dpo_trainer.data.formats.detection import detect, hint
from dpo_trainer.data.formats.normalization import normalize, read_rows
from dpo_trainer.data.formats.pairs import Format, Pair, Rejection

__all__ = ["Format", "Pair", "Rejection", "detect", "hint", "normalize", "read_rows"]
