"""Runs prepare against a hub on loopback, in a process of its own: HF_ENDPOINT is read when huggingface_hub is imported.

    python -m tests.unit.trainer.hub_scenarios FOLDER SHARED_OR_EMPTY

Prints one JSON object: for each scenario its exit code and message, or what was prepared, and the requests that were made.
"""

import json
import logging
import os
import sys
from pathlib import Path

from tests.unit.trainer.hub_server import TOKEN, Repo, files_of, serving
from tests.unit.trainer.tiny import CHATML, tiny_model


def repositories(folder: Path) -> dict[str, Repo]:
    tiny = files_of(tiny_model(folder / "tiny", template=CHATML))
    chats = [
        {"chosen": [{"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": "yes"}],
         "rejected": [{"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": "no"}], "score": i}
        for i in range(10)
    ]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in chats).encode()
    pairs = {
        "README.md": b"# pairs\n",
        "data/train.jsonl": lines,
        "data/test.jsonl": lines[: len(lines) // 2 + 1].rsplit(b"\n", 1)[0],
    }
    scored = "".join(
        json.dumps({"q": [{"role": "user", "content": f"Q{i}"}], "answers": ["yes", "no"], "rank": [1, 2], "id": f"{i}",
                    "meta": {"lang": "en" if i < 4 else "de"}}) + "\n"
        for i in range(10)
    ).encode()  # fmt: skip
    configured = b"---\nconfigs:\n- config_name: a\n  data_files: data/train.jsonl\n- config_name: b\n  data_files: data/test.jsonl\n---\n"
    return {
        "models/org/tiny": Repo(
            tiny | {"pytorch_model.bin": b"x", "modeling_x.py": b"x", "original/consolidated.safetensors": b"x"}
        ),
        "models/org/private": Repo(tiny, access="private"),
        "models/org/gated": Repo(tiny, access="gated"),
        "models/org/closed": Repo(tiny, access="closed"),
        "datasets/org/gated": Repo(pairs, access="gated"),
        "datasets/org/closed": Repo(pairs, access="closed"),
        "models/org/down": Repo(tiny, access="down"),
        "models/org/pickle": Repo({"config.json": tiny["config.json"], "pytorch_model.bin": b"x"}),
        "datasets/org/pairs": Repo(pairs),
        "datasets/org/scored": Repo({"README.md": b"# scored\n", "train.jsonl": scored}),
        "datasets/org/private": Repo(pairs, access="private"),
        "datasets/org/configured": Repo(pairs | {"README.md": configured}),
        "datasets/org/empty": Repo({"README.md": b"# nothing\n"}),
        "datasets/org/script": Repo({"script.py": b"raise SystemExit('code of a dataset ran')\n"}),
        "datasets/org/damaged": Repo({"train.jsonl": b'{"chosen": oops\n'}),
    }


SCENARIOS = {
    "whole": {"eval": {"source": "org/pairs", "split": "test"}},
    "slice": {"train": {"source": "org/pairs", "split": "train[2:5]"}},
    "limit": {"train": {"source": "org/pairs", "limit": 3}},
    "scored": {
        "train": {"source": "org/scored", "columns": {"prompt": "q"}},
        "filters": {"where": [{"column": "meta.lang", "values": ["en"]}], "minScoreGap": 1.0},
    },
    "unfit": {"train": {"source": "org/scored", "columns": {"responses": "replies"}}},
    "configured": {"train": {"source": "org/configured", "config": "b"}},
    "private": {"model": "org/private", "train": {"source": "org/private"}, "token": TOKEN},
    "private without token": {"model": "org/private"},
    "private data without token": {"train": {"source": "org/private"}},
    "gated": {"model": "org/gated", "token": TOKEN},
    "closed": {"model": "org/closed", "token": TOKEN},
    "gated data": {"train": {"source": "org/gated"}, "token": TOKEN},
    "closed data": {"train": {"source": "org/closed"}, "token": TOKEN},
    "unknown": {"model": "org/unknown", "token": TOKEN},
    "unknown revision": {"revision": "v9"},
    "unknown data revision": {"train": {"source": "org/pairs", "revision": "v9"}},
    "down": {"model": "org/down"},
    "pickle": {"model": "org/pickle"},
    "no split": {"train": {"source": "org/pairs", "split": "validation"}},
    "no config": {"train": {"source": "org/configured", "config": "c"}},
    "config missing": {"train": {"source": "org/configured"}},
    "empty": {"train": {"source": "org/empty"}},
    "script": {"train": {"source": "org/script"}},
    "damaged": {"train": {"source": "org/damaged"}},
    "offline": {"offline": True},
}


def run(name: str, settings: dict, folder: Path) -> dict:
    from huggingface_hub import constants

    from dpo_operator.api.types import DPOJob
    from dpo_trainer.prepare import phase as prepare
    from dpo_trainer.prepare.inputs import Inputs
    from dpo_trainer.runtime.errors import TrainerError
    from dpo_trainer.runtime.workdir import WorkDir

    model = {"name": settings.get("model", "org/tiny"), "revision": settings.get("revision")}
    data = {"maxLength": 512, "train": settings.get("train", {"source": "org/pairs"}), "eval": settings.get("eval")}
    data["filters"] = settings.get("filters", {})
    job = DPOJob.model_validate({"metadata": {"name": "j"}, "spec": {"model": model, "data": data}})
    work = WorkDir(folder / "work" / name.replace(" ", "-"))
    constants.HF_HUB_OFFLINE = settings.get("offline", False)
    try:
        report = prepare.run(job, work, Inputs(folder, settings.get("token")))
    except TrainerError as error:
        return {"code": int(error.exit_code), "message": str(error), "prepared": work.prepared.exists()}
    made = json.loads(work.prepared.read_text())
    files = sorted(path.name for path in work.model.iterdir())
    return {
        "code": 0,
        "report": report.model_dump(),
        "made": made,
        "files": files,
        "left": sorted(p.name for p in work.root.iterdir()),
    }


def main(folder: Path) -> None:
    logging.disable(logging.WARNING)
    with serving(repositories(folder)) as hub:
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        from dpo_trainer.runtime.libraries import import_tokenizers_alone
        from dpo_trainer.sources import retrying

        import_tokenizers_alone()  # as prepare does
        retrying.FIRST_WAIT_SECONDS = 0.01
        results = {}
        for name, settings in SCENARIOS.items():
            hub.requests.clear()
            results[name] = run(name, settings, folder) | {"requests": list(hub.requests)}
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
