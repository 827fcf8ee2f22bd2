"""Write unpaired examples for KTO from the quickstart's training pairs: one answer of each pair, with a label.

    python examples/methods/make_data.py

Two of three answers are the kind one, so that the labels are not balanced. The output is committed; run this to change it.
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
PAIRS = HERE.parent / "quickstart" / "data" / "train.jsonl"
UNPAIRED = HERE / "data" / "unpaired.jsonl"


def unpaired() -> str:
    """The file's text: a JSON object with prompt, completion and label on each line."""
    lines = []
    for number, line in enumerate(PAIRS.read_text(encoding="utf-8").splitlines()):
        pair, desirable = json.loads(line), number % 3 != 2
        completion = pair["chosen" if desirable else "rejected"]
        lines.append(json.dumps({"prompt": pair["prompt"], "completion": completion, "label": desirable}))
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    UNPAIRED.parent.mkdir(exist_ok=True)
    UNPAIRED.write_text(unpaired(), encoding="utf-8")
    print(f"{UNPAIRED.name}: {unpaired().count(chr(10))} examples")
