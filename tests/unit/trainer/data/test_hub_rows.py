"""Tables of the datasets library become rows."""

import datasets
import pytest

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats import Rejection, normalize
from dpo_trainer.data.hub_rows import HubRows, without_media

pytestmark = pytest.mark.unit

BROKEN = {"bytes": b"no picture", "path": None}


def test_pictures_are_seen_and_not_decoded():
    content = {
        "prompt": ["Q"] * 3, "chosen": ["a"] * 3, "rejected": ["b"] * 3,
        "image": [BROKEN, None, None], "images": [[], [BROKEN], []],
    }  # fmt: skip
    kinds = {name: datasets.Value("string") for name in ("prompt", "chosen", "rejected")}
    kinds |= {"image": datasets.Image(), "images": datasets.List(datasets.Image())}
    table, media = without_media(datasets.Dataset.from_dict(content, features=datasets.Features(kinds)))
    rows = list(HubRows("c", (), table, media))
    assert [(row["image"], row["images"]) for row in rows] == [(True, None), (None, True), (None, None)]
    found = [normalize(row, "pairs", Columns()) for row in rows]
    assert [isinstance(item, Rejection) for item in found] == [True, True, False]


def test_a_table_of_text_stays_as_it_is():
    table = datasets.Dataset.from_dict({"prompt": ["Q"], "answers": [["a", "b"]]})
    assert without_media(table) == (table, None)
    assert list(HubRows("c", (), table)) == [{"prompt": "Q", "answers": ["a", "b"]}]
