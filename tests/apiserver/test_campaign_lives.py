"""Lives on the real engine of the campaign: the operator's process, a real API server, faults at the requests of a life."""

from collections.abc import Iterator

import pytest

from tests.apiserver.client import Requests
from tests.campaign import real
from tests.campaign.faults import Plan
from tests.campaign.report import Campaign
from tests.cluster.rig.control_plane import ControlPlane

pytestmark = pytest.mark.apiserver


@pytest.fixture(scope="module")
def campaign(
    control_plane: ControlPlane, dpojobs: Requests, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Campaign]:
    with real.engine(control_plane, tmp_path_factory.mktemp("campaign")) as engine:
        yield Campaign(engine.live)


def test_calm_life_keeps_the_rules_that_others_are_compared_with(campaign: Campaign) -> None:
    life = campaign.calm_life(1, "whole")
    assert (life.ending["state"], life.ending["restarts"], life.overdue) == ("Complete", (1, 1), "")
    assert life.given == {"-train-2": ["d" * 64], "-export-1": ["d" * 64]}
    assert (life.twice, life.left, len(life.claims), len(set(life.claims))) == ([], [], 2, 1)
    assert set(life.strangers.values()) == {True}
    assert life.made["jobs/life-1-train-2"] == 1


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(
            {20: "lost", 35: "404-text", 50: "watch-410", 80: "truncated"}, id="answers", marks=pytest.mark.exhaustive
        ),
        pytest.param({15: "death-after", 40: "duplicate", 60: "404", 90: "watch-reordered"}, id="death"),
    ],
)
def test_life_with_four_faults_ends_as_a_calm_one(campaign: Campaign, faults: dict[int, str]) -> None:
    found = campaign.try_out(Plan(faults))
    assert found == []
    assert campaign.injections.keys() >= set(faults.values())
