"""The dataset report, and the first pairs as the model will see them.

A doubled BOS, a missing EOS or a wrong template is visible at a glance.
"""

from collections.abc import Iterator

from dpo_trainer.data.dataset import PairDataset, TokenIds
from dpo_trainer.data.tokens.tokenization import load_tokenizer
from dpo_trainer.prepare.record import Prepared
from dpo_trainer.runtime.errors import volume_error
from dpo_trainer.runtime.workdir import WorkDir


def lines(work: WorkDir, count: int = 3) -> Iterator[str]:
    """Lines of text about a prepared folder: the dataset report, then the first pairs, of each source in a mixture.

    Each part of a pair is a line of tokens between bars, as the tokenizer spells them; only the tokens of chosen and
    rejected (mask 1) enter the loss. An unpaired example has one of these two.
    Raises TrainerError when the folder is not prepared.
    """
    dataset = PairDataset.open(work.train_data)
    try:
        yield from work.data_report.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise volume_error(f"{work.data_report.parent}: expected a dataset report; run prepare again") from error
    yield ""
    tokenizer = load_tokenizer(work.model, str(work.model))

    def word(token: int) -> str:
        text = tokenizer.decode([token]).replace("\n", "⏎")
        # SentencePiece's decoder drops a space at the beginning, and each token is one.
        spaced = str(tokenizer.convert_ids_to_tokens(token)).startswith(("▁", " ")) and not text.startswith(" ")
        return f" {text}" if spaced else text

    def spelled(ids: TokenIds) -> str:
        return "|".join(word(token) for token in ids.tolist())

    for index, source in _first(work, count):
        pair = dataset[index]
        yield f"pair {index} ({source}row {pair.row}){', truncated' if pair.truncated else ''}"
        for name, ids, mask in (("prompt", pair.prompt, 0), ("chosen", pair.chosen, 1), ("rejected", pair.rejected, 1)):
            if len(ids):
                yield f"  {name:<8} mask {mask} {len(ids):>5} tokens |{spelled(ids)}|"


def _first(work: WorkDir, count: int) -> Iterator[tuple[int, str]]:
    """Index of each pair to show, and the prefix of its row number: the source's name in a mixture.

    Training pairs lie in the order of the sources.
    """
    try:
        inputs = Prepared.read(work).inputs
    except (OSError, ValueError) as error:
        raise volume_error(
            f"{work.prepared}: expected what prepare writes, found {error}; run prepare again"
        ) from error
    used = {name: record.used or 0 for name, record in inputs.items() if name != "eval"}
    start = 0
    for name, pairs in used.items():
        for index in range(start, start + min(count, pairs)):
            yield index, "" if len(used) == 1 else f"{name} "
        start += pairs
