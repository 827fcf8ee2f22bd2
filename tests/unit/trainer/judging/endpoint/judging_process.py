"""A judge in a process of its own, to be killed: prints a line when it begins, and the pairs when it is done."""

import json
import sys
from pathlib import Path

from dpo_trainer.judging import open_judge
from dpo_trainer.runtime.job import stop_on_request
from dpo_trainer.runtime.stop import Stopped
from dpo_trainer.runtime.workdir import WorkDir
from tests.unit.trainer.judging.endpoint.asking import pairs, questions, settings


def main() -> int:
    """Judge; 143 after a stop, as the phase has it."""
    url, root, count = sys.argv[1:]
    judge = open_judge(settings(url, concurrency=4), WorkDir(Path(root)), stop=stop_on_request())
    print("begun", flush=True)
    try:
        print(json.dumps(pairs(judge.judge(questions(int(count), answers=3), lambda: None))), flush=True)
    except Stopped:
        return 143
    finally:
        judge.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
