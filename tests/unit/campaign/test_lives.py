"""Lives of a DPOJob in memory with injected faults end as calm ones, and a defect would be found.

The engine replaces the clock, so it runs in processes of its own.
"""

import os
import subprocess
import sys

import pytest

from tests.campaign.faults import KINDS

pytestmark = pytest.mark.unit

# Plans that once violated an invariant. An old DPOJob made its running Job look like one of an earlier attempt.
FOUND = ['{"faults": {"80": "watch-silent", "221": "old"}, "seed": 136612, "replicas": 2, "life": "whole"}']
# As the operator once was: any 404 counts, and one look is enough.
CARELESS = """
from tests.campaign import clock
clock.install()
from dpo_operator.kube import client
from dpo_operator.planning import certainty
client._is_not_found = lambda status, path: True
certainty.SECOND_LOOK_SECONDS = 0.0
from tests.campaign import memory
from tests.campaign.faults import Plan
from tests.campaign.report import Campaign
campaign = Campaign(memory.live)
plans = (Plan({index: "404", index + 20: "500"}) for index in range(65, 120))
plan, found = campaign.shortest(next(plan for plan in plans if campaign.try_out(plan)))
print(len(plan.faults), *found, sep="\\n")
"""


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=600)


def test_every_kind_of_fault_changes_nothing_in_the_end():
    """Each kind at least once, with one replica and with two, up to four together."""
    done = run("-m", "tests.campaign", "--lives", "40", "--minutes", "60", "--seed", "11")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"of {len(KINDS)} kinds, 0 lives that violate an invariant" in done.stdout
    assert "with 2 replicas" in done.stdout


@pytest.mark.exhaustive
def test_some_thousand_faults_change_nothing_in_the_end():
    done = run("-m", "tests.campaign", "--lives", "800", "--minutes", "60", "--seed", "12")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("plan", FOUND)
def test_what_was_found_once_stays_mended(plan: str):
    done = run("-m", "tests.campaign", "--repeat", plan)
    assert (done.stdout, done.returncode) == ("nothing is violated\n", 0), done.stderr


def test_defect_is_found_and_told_with_the_fault_that_shows_it():
    done = run("-c", CARELESS)
    assert done.returncode == 0, done.stderr
    count, *found = done.stdout.splitlines()
    assert count == "1"
    assert any(line.startswith("F: state is Failed") for line in found)
