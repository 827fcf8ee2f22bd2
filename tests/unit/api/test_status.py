"""Names of the status's fields: today's, and those that stored objects still have."""

from typing import get_type_hints

import pytest

from dpo_operator.api.status import DPOJobStatus, StatusFields, Workers
from dpo_operator.api.statusparts.renames import RENAMED, with_current_names
from dpo_operator.generate.crd import status_schema

pytestmark = pytest.mark.unit


def test_the_typed_names_are_the_fields_of_the_status():
    hints = get_type_hints(DPOJobStatus)
    assert get_type_hints(StatusFields) == {name: hints[name] for name in DPOJobStatus.model_fields}


def test_a_misspelt_field_of_a_status_or_of_its_parts_is_refused():
    with pytest.raises(TypeError, match="DPOJobStatus has no field best_step"):
        DPOJobStatus().model_copy(update={"best_step": 3})
    with pytest.raises(TypeError, match="Workers has no field ready"):
        Workers().model_copy(update={"ready": 1})


def test_a_status_with_earlier_names_is_read_and_written_with_todays():
    wait = {"waitingSince": "2026-01-01T12:00:00Z", "timeouts": 2}
    restart = {"time": "2026-01-01T12:00:00Z", "phase": "train", "attempt": 1, "reason": "Hang"}
    stored = {
        "bestStep": 12,
        "retried": "once",
        "placement": wait,
        "activeSeconds": 60,
        "restartsCountTowardsMax": 3,
        "workers": {"desired": 2, "ready": 1},
        "restartHistory": [restart | {"failureClass": kind} for kind in ("counted", "infrastructure", "planned")],
    }
    status = DPOJobStatus.model_validate(stored)
    assert (status.furthest_step, status.last_handled_retry, status.active_seconds_before) == (12, "once", 60)
    assert (status.counted_restarts, status.workers.started) == (3, 1)
    assert [entry.counting for entry in status.restart_history] == ["Counted", "Uncounted", "Planned"]
    written = status.to_dict()
    assert written["placementWait"] == wait
    assert not {rename.earlier for rename in RENAMED} & written.keys()
    assert written["workers"] == {"desired": 2, "started": 1}
    assert all("failureClass" not in entry for entry in written["restartHistory"])
    assert DPOJobStatus.model_validate(written) == status


def test_an_earlier_name_counts_only_where_todays_is_absent():
    both = {"bestStep": 1, "furthestStep": 2, "workers": {"ready": 1, "started": 2}}
    status = DPOJobStatus.model_validate(both)
    assert (status.furthest_step, status.workers.started) == (2, 2)
    assert with_current_names({"phase": "train"}) == {"phase": "train"}


def test_the_crd_keeps_both_names_and_requires_neither():
    """Without the earlier name, the API server would drop the value; a required one would refuse changes of stored jobs."""
    schema = status_schema()
    nodes = {
        "": schema,
        "workers": schema["properties"]["workers"],
        "restartHistory[]": schema["properties"]["restartHistory"]["items"],
    }
    for rename in RENAMED:
        node = nodes[rename.part]
        earlier, now = node["properties"][rename.earlier], node["properties"][rename.now]
        assert earlier["type"] == now["type"]
        assert earlier["description"] == f"Deprecated: read when {rename.now} is absent."
        assert not {rename.earlier, rename.now} & set(node.get("required", ()))
