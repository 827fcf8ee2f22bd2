"""Inject faults at every request of a DPOJob's life, and compare its end with that of a calm life: `make campaign`.

The engine `memory` runs the operator's own code over an API server in memory, in virtual time; `real` runs the operator's process behind
a proxy to a real API server. Plans are random and come from --seed alone. For what is violated the shortest plan is printed, with the
command that repeats it. docs/development/campaign.md tells more.
"""

import argparse
import itertools
import logging
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from tests.campaign import clock
from tests.campaign.faults import KINDS, Plan, covering_plans, random_plan, single_plan
from tests.campaign.report import Campaign, Live
from tests.faults import page

PAGE = Path("docs/faults.md")


@contextmanager
def engine(name: str) -> Iterator[Live]:
    """The function that lives a life."""
    if name == "memory":
        # Before the operator's modules are imported.
        clock.install()
        from tests.campaign import memory

        yield memory.live
        return
    from dpo_operator.generate import crd
    from tests.apiserver.client import wait_until_served
    from tests.campaign import real
    from tests.cluster.rig import fixture

    with fixture.control_plane("campaign") as plane, TemporaryDirectory() as folder:
        plane.apply(crd.crd())
        wait_until_served(plane, crd.NAME)
        with real.engine(plane, Path(folder)) as made:
            yield made.live


def plans(seed: int, campaign: Campaign) -> Iterator[Plan]:
    """Each kind once, then one fault alone after each two lives with up to four together."""
    chance = random.Random(seed)
    lengths = {key: campaign.calm_life(*key).requests for key in itertools.product((1, 2), ("whole", "deleted"))}
    yield from covering_plans(chance, lengths)
    while True:
        yield single_plan(chance, lengths)
        yield random_plan(chance, lengths)
        yield random_plan(chance, lengths)


def main() -> int:
    """Exit status 0 when nothing was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--engine", choices=["memory", "real"], default="memory")
    parser.add_argument("--minutes", type=float, default=5.0, help="about how long, default 5")
    parser.add_argument("--lives", type=int, help="at most so many")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument(
        "--repeat", type=Plan.parse, metavar="PLAN", help="live this plan alone, and say what it violates"
    )
    parser.add_argument("--write", action="store_true", help="write the table into docs/faults.md")
    parser.add_argument("--verbose", action="store_true", help="with the operator's log")
    arguments = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets is part of a plan's life.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.campaign", *sys.argv[1:]],
            os.environ | {"PYTHONHASHSEED": "0"},
        )
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.CRITICAL + 1)
    with engine(arguments.engine) as live:
        campaign = Campaign(live)
        if arguments.repeat is not None:
            found = campaign.try_out(arguments.repeat)
            print(*(found or ["nothing is violated"]), sep="\n")
            return bool(found)
        missing = run(arguments, campaign)
    return bool(campaign.broken or missing)


def run(arguments: argparse.Namespace, campaign: Campaign) -> list[str]:
    """Live until the time is over, and print the table. Returns the kinds that were not injected."""
    began = time.perf_counter()
    print(f"seed {arguments.seed}", flush=True)
    for plan in plans(arguments.seed, campaign):
        if time.perf_counter() - began > 60 * arguments.minutes or campaign.lives == arguments.lives:
            break
        if campaign.try_out(plan):
            tell(campaign, plan, arguments.engine)
    Console(width=None if sys.stdout.isatty() else 140).print(campaign.table())
    print(campaign.summary())
    if arguments.write:
        command = f'make campaign CAMPAIGN="{" ".join(a for a in sys.argv[1:] if a != "--write")}"'
        text = page.with_campaign(PAGE.read_text(encoding="utf-8"), campaign.markdown(command))
        PAGE.write_text(text, encoding="utf-8")
    missing = [kind for kind in KINDS if not campaign.injections[kind]]
    if missing:
        print(f"not injected: {', '.join(missing)}")
    return missing


def tell(campaign: Campaign, plan: Plan, engine: str) -> None:
    """What a plan violates, and how to see it again."""
    shortest, found = campaign.shortest(plan)
    print(*(f"VIOLATED {each}" for each in found), sep="\n")
    print(f"  python -m tests.campaign --engine {engine} --repeat '{shortest}'", flush=True)


if __name__ == "__main__":
    sys.exit(main())
