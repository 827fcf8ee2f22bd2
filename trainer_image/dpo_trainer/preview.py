"""What prepare found in the data, and the first pairs as the model will see them: a doubled BOS, a missing EOS or a wrong
template is seen at a glance.
"""

from collections.abc import Iterator

from dpo_trainer.dataset import IntArray, PairDataset
from dpo_trainer.errors import volume_error
from dpo_trainer.tokenization import load_tokenizer
from dpo_trainer.workdir import WorkDir


def lines(work: WorkDir, count: int = 3) -> Iterator[str]:
    """Lines of text about a prepared folder: the dataset report, then the first pairs.

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

    def spelled(ids: IntArray) -> str:
        return "|".join(word(token) for token in ids.tolist())

    for index in range(min(count, len(dataset))):
        pair = dataset[index]
        yield f"pair {index} (row {pair.row}){', truncated' if pair.truncated else ''}"
        for name, ids, mask in (("prompt", pair.prompt, 0), ("chosen", pair.chosen, 1), ("rejected", pair.rejected, 1)):
            if len(ids):
                yield f"  {name:<8} mask {mask} {len(ids):>5} tokens |{spelled(ids)}|"
