"""Write the example's preference pairs: the same request answered kindly (chosen) and curtly (rejected).

    python examples/quickstart/make_data.py

The evaluation pairs are about things that no training pair mentions. The output is committed; run this to change it.
"""

import json
import random
from pathlib import Path

THINGS = {
    "train": "bread soup tea rice cake salad pasta jam butter cheese honey coffee juice curry stew pie toast beans "
    "lamp chair clock radio bike kettle fence roof door window garden hedge lawn pond shed path wall gate".split(),
    "eval": "porridge cider omelette waffle noodles mustard sofa piano scooter ladder balcony cellar".split(),
}
REQUESTS = [
    "How do I make good {thing}?",
    "Can you tell me about {thing}?",
    "My {thing} went wrong. What now?",
    "What should I know about {thing}?",
    "Where do I begin with {thing}?",
    "Is {thing} hard?",
]
ADVICE = [
    "Begin with a plan and take your time.",
    "Use clean tools and check twice.",
    "Keep it simple and try again.",
    "Ask a friend and read a guide.",
    "Start small and learn from it.",
]
KIND_OPENINGS = ["Of course, happy to help!", "Great question!", "Thank you for asking!", "I would love to help."]
KIND_ENDINGS = ["You can do this!", "I hope that helps.", "Enjoy your {thing}!", "Please ask me again."]
CURT_OPENINGS = ["Not this again.", "What a silly question.", "I do not care.", "You should know that."]
CURT_ENDINGS = ["Now go away.", "Stop wasting my time.", "Even you can do that.", "Forget the {thing}."]


def pair(rng: random.Random, thing: str) -> dict[str, str]:
    """One pair. Both answers give advice of the same kind, so that only the tone tells them apart."""
    request = rng.choice(REQUESTS).format(thing=thing)

    def answer(openings: list[str], endings: list[str]) -> str:
        return f" {rng.choice(openings)} {rng.choice(ADVICE)} {rng.choice(endings).format(thing=thing)}"

    return {
        "prompt": f"Question: {request}\nAnswer:",
        "chosen": answer(KIND_OPENINGS, KIND_ENDINGS),
        "rejected": answer(CURT_OPENINGS, CURT_ENDINGS),
    }


def main() -> None:
    """Write data/train.jsonl and data/eval.jsonl beside this file."""
    rng = random.Random(0)
    for split, count in (("train", 640), ("eval", 96)):
        rows = [pair(rng, rng.choice(THINGS[split])) for _ in range(count)]
        path = Path(__file__).parent / "data" / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path.name}: {count} pairs")


if __name__ == "__main__":
    main()
