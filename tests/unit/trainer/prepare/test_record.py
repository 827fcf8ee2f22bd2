"""prepared.json as a typed record."""

import json

import pytest
import yaml

from dpo_operator.api.types import DPOJob
from dpo_trainer.prepare.record import Prepared, input_digests
from dpo_trainer.runtime.workdir import WorkDir
from tests.unit.trainer.place import Place
from tests.unit.trainer.pretrained.test_adapters import an_adapter

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_record_of_earlier_code_is_read_and_written_unchanged(name, pytestconfig):
    work = WorkDir(pytestconfig.rootpath / "tests/fixtures/format1" / name / "work")
    then = json.loads(work.prepared.read_bytes())
    # Whether the pairs of the model's family could be packed: since then all families are.
    assert then["report"]["model"].pop("packs") is True
    assert json.loads(Prepared.read(work).to_bytes()) == then


def test_what_prepare_writes_is_read_back_unchanged(tmp_path):
    place = Place(tmp_path)
    report = place.run(evalFraction=0.2)
    made = Prepared.read(place.work)
    assert made.report == report
    assert made.to_bytes() == place.work.prepared.read_bytes()
    assert (made.inputs["train"].used, made.inputs["train"].held_out) == (16, 4)


def test_keys_of_a_hub_source_are_kept_when_null(tmp_path):
    place = Place(tmp_path)
    place.run()
    document = place.made
    source = document["inputs"]["train"]
    del source["files"]
    source |= {"kind": "hub", "split": "train", "config": None, "commit": "c0ffee"}
    assert json.loads(Prepared.model_validate(document).to_bytes()) == document


def test_a_file_name_that_is_not_utf8_survives(tmp_path):
    place = Place(tmp_path)
    place.run()
    document = place.made
    document["inputs"]["train"]["files"] = {"caf\udce9.jsonl": 3}
    assert json.loads(Prepared.model_validate(document).to_bytes()) == document


def test_keys_of_a_later_version_are_ignored(tmp_path):
    place = Place(tmp_path)
    place.run()
    made = Prepared.read(place.work)
    assert Prepared.model_validate(place.made | {"later": 1}) == made


@pytest.mark.parametrize("name", ["full", "lora"])
def test_earlier_checkpoints_have_the_digest_of_their_model(name, pytestconfig):
    run = pytestconfig.rootpath / "tests/fixtures/format1" / name
    spec = DPOJob.model_validate(yaml.safe_load((run / "job.yaml").read_text())).spec
    manifests = list((run / "work/checkpoints").glob("*/manifest.json"))
    assert manifests
    for manifest in manifests:
        assert (
            input_digests(spec, WorkDir(run / "work"))["model"] == json.loads(manifest.read_text())["identity"]["model"]
        )


def test_an_adapters_settings_are_in_the_digest(tmp_path):
    place = Place(tmp_path)
    found = set()
    for alpha in (8, 16):
        model = {"adapter": {"name": str(an_adapter(tmp_path / "sft", lora_alpha=alpha))}}
        place.run(model=model)
        found.add(input_digests(place.job(model=model).spec, place.work)["model"])
    assert len(found) == 2
