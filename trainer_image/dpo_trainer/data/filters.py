"""spec.data.filters: valid rows that are left out, each with its reason.

A filter that finds its column in no row (RowFilters.evaluated - RowFilters.applicable) is reported as a misspelling.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from dpo_operator.api.data import Columns, Condition, Filters
from dpo_trainer.data.dataset import TokenPair
from dpo_trainer.data.formats import Pair, Rejection
from dpo_trainer.data.formats.pairs import Reason
from dpo_trainer.data.formats.values import kind, lookup, number

# Names of the filters in the spec; conditions are named where[0], where[1], …
NAMES = ("minConfidence", "minScoreGap", "minAgreement", "maxLengthRatio")


class RowFilters:
    """The filters of one source of data.

    seen: hashes of the pairs so far, for dropDuplicates; sources that are mixed share it.
    lenient: for mixtures in which only some sources have scores. Rows without the value that a filter needs pass it until a row
        of the same source has the value; without lenient they are bad rows.
    """

    def __init__(self, filters: Filters, columns: Columns, seen: set[bytes], *, lenient: bool = False) -> None:
        self._filters = filters
        self._columns = columns
        self._seen = seen
        self._lenient = lenient
        # Filters that were applied to a row, and those that found the value they need in one, by their names in the spec.
        self.evaluated: set[str] = set()
        self.applicable: set[str] = set()

    def before(self, row: Any) -> Rejection | None:
        """Rejection by the conditions of filters.where, before the answers are read."""
        if not isinstance(row, Mapping):
            return None
        failed = None
        for i, condition in enumerate(self._filters.where):
            name, value = f"where[{i}]", lookup(row, condition.column)
            self._note(name, value is not None)
            if failed is None and not meets(value, condition):
                failed = Rejection(
                    Reason.CONDITION,
                    f"{condition.column}: {kind(value)} that does not meet filters.{name} ({condition.operator})",
                )
        return failed

    def after(self, row: Mapping[str, Any], pair: Pair) -> Rejection | None:
        """Rejection by confidence, scores or votes."""
        return self._confidence(row) or self._score_gap(pair) or self._agreement(pair)

    def of_tokens(self, pair: TokenPair) -> Rejection | None:
        """Rejection by the lengths of the answers, or as a duplicate of an earlier pair."""
        lengths = sorted((len(pair.chosen), len(pair.rejected)))
        most = self._filters.max_length_ratio
        if most is not None and self._note("maxLengthRatio", lengths[0] > 0) and lengths[1] > most * lengths[0]:
            return Rejection(
                Reason.LENGTH_RATIO,
                f"answers of {lengths[1]} and {lengths[0]} tokens; filters.maxLengthRatio is {most:g}",
            )
        if self._filters.drop_duplicates:
            key = _hash(pair)
            if key in self._seen:
                return Rejection(Reason.DUPLICATE, "an earlier pair has the same tokens")
            self._seen.add(key)
        return None

    def _confidence(self, row: Mapping[str, Any]) -> Rejection | None:
        least, column = self._filters.min_confidence, self._columns.confidence
        if least is None:
            return None
        value = lookup(row, column)
        if not self._note("minConfidence", value is not None):
            return self._lacking("minConfidence", f"no value in column {column}")
        share = number(value)
        if share is None or not 0 <= share <= 1:
            return Rejection(Reason.BAD_CONFIDENCE, f"{column}: expected a number from 0 to 1")
        if share < least:
            return Rejection(Reason.LOW_CONFIDENCE, f"{column}: {share:g} is below filters.minConfidence {least:g}")
        return None

    def _score_gap(self, pair: Pair) -> Rejection | None:
        least = self._filters.min_score_gap
        if least is None:
            return None
        gap = pair.score_gap
        if not self._note("minScoreGap", gap is not None) or gap is None:
            names = f"{self._columns.chosen_score} and {self._columns.rejected_score}"
            return self._lacking("minScoreGap", f"no numbers in columns {names}, and no scores of several answers")
        if gap < least:
            return Rejection(
                Reason.LOW_SCORE_GAP,
                f"the score of the chosen answer minus that of the rejected one is {gap:g}; filters.minScoreGap is "
                f"{least:g}",
            )
        return None

    def _agreement(self, pair: Pair) -> Rejection | None:
        least = self._filters.min_agreement
        if least is None:
            return None
        agreement = pair.agreement
        if not self._note("minAgreement", agreement is not None) or agreement is None:
            return self._lacking("minAgreement", "the row is no pair with votes")
        if agreement < least:
            return Rejection(
                Reason.LOW_AGREEMENT,
                f"{agreement:.1%} of the votes are for the chosen answer; filters.minAgreement is {least:g}",
            )
        return None

    def _note(self, name: str, applicable: bool) -> bool:
        self.evaluated.add(name)
        if applicable:
            self.applicable.add(name)
        return applicable

    def _lacking(self, name: str, detail: str) -> Rejection | None:
        if self._lenient and name not in self.applicable:
            return None
        return Rejection(Reason.MISSING_COLUMN, f"{detail}, which filters.{name} needs")


def meets(value: Any, condition: Condition) -> bool:
    """Whether a column's value meets a condition. A missing value meets only NotIn and DoesNotExist.

    A list meets In when one of its items does, and NotIn when none is among the values.
    """
    match condition.operator:
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "In" | "NotIn":
            items = value if isinstance(value, list) else [value]
            found = any(_equals(item, wanted) for item in items for wanted in condition.values)
            return found == (condition.operator == "In")
    bound, have = number(condition.values[0]), number(value)
    if bound is None or have is None:
        return False
    return have >= bound if condition.operator == "AtLeast" else have <= bound


def needs(name: str, filters: Filters, columns: Columns) -> str:
    """What a filter reads, for messages. name: of a setting of the spec, where[0] or minConfidence."""
    if name.startswith("where"):
        return f"a value in column {filters.where[int(name[6:-1])].column}"
    return {
        "minConfidence": f"a number (columns.confidence) in column {columns.confidence}",
        "minScoreGap": f"numbers in columns {columns.chosen_score} and {columns.rejected_score} (columns.chosenScore, "
        "columns.rejectedScore), or scored data",
        "minAgreement": "voted pairs (format votes)",
        "maxLengthRatio": "pairs with two answers",
    }[name]


def _equals(value: Any, wanted: str) -> bool:
    if value is None or isinstance(value, list | Mapping):
        return False
    if isinstance(value, bool):
        return wanted.lower() == ("true" if value else "false")
    if not isinstance(value, str) and (have := number(value)) is not None:
        return have == number(wanted)
    return str(value) == wanted


def _hash(pair: TokenPair) -> bytes:
    digest = blake2b(digest_size=16)
    for part in (pair.prompt, pair.chosen, pair.rejected):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part.tobytes())
    return digest.digest()
