"""Prepare as a whole: what it writes, what it keeps, and what it refuses."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.training import EarlyStopping
from dpo_trainer.checkpoint.layout import folder_name
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.data.tokens.tokenization import load_tokenizer
from dpo_trainer.prepare import phase as prepare
from dpo_trainer.prepare.inputs import Inputs
from dpo_trainer.prepare.record import spec_hash
from dpo_trainer.runtime.errors import TrainerError
from tests.unit.trainer.place import Place, rows
from tests.unit.trainer.pretrained.test_adapters import an_adapter
from tests.unit.trainer.tiny import CHATML, tiny_model, write_jsonl

pytestmark = pytest.mark.unit


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_real_dialogues(place, shared):
    data = shared / "data/hh_helpful_base"
    report = place.run(
        model={"name": str(shared / "models/stories260K")},
        train={"source": str(data / "train.jsonl")},
        eval={"source": str(data / "test.jsonl")},
        maxLength=512,
    )
    assert (report.train_pairs, report.eval_pairs, report.dropped) == (1993, 200, {"prompts_differ": 7})
    assert 0 < report.truncated_pairs < 1100
    made = place.made
    assert made["report"] == report.model_dump(mode="json")
    assert made["inputs"]["train"]["format"] == "dialogue"
    assert made["model"]["weights"] == {
        "model.safetensors": "407a7c581bdd66972383ce9ad24857713fb98786d06ea564a2fe9b34ebe77dfd"
    }
    assert made["model"]["parameters"] == 260_032
    assert made["data"]["eval"]["prompts_in_train"] == 0
    assert (
        0.55 < made["data"]["train"]["chosen_longer"] < 0.62
    )  # its README counts 59.3% by characters, before truncation
    train = PairDataset.open(place.work.train_data)
    assert train.digest == made["data"]["train"]["digest"]
    assert int((train.lengths[:, 0] + train.lengths[:, 1:].max(axis=1)).max()) == 512
    lines = (data / "train.jsonl").read_text().splitlines()
    tokenizer = load_tokenizer(place.work.model, "m")
    whole = next(train[i] for i in range(len(train)) if train.lengths[i].sum() < 400)
    text = tokenizer.decode(np.concatenate([whole.prompt, whole.chosen]), skip_special_tokens=True)
    assert text.strip() == json.loads(lines[whole.row])["chosen"].strip()


def test_real_instructions(place, shared):
    source = str(shared / "data/polite_rude/instruction-data-with-preference.json")
    report = place.run(model={"name": str(shared / "models/stories260K")}, train={"source": source}, maxLength=512)
    assert (report.train_pairs, report.dropped) == (1094, {"equal_answers": 6})
    assert [row["row"] for row in place.dropped] == [122, 226, 400, 566, 628, 676]


def test_real_degenerate_rows_fail_with_counts(place, shared):
    message = place.refused(ExitCode.BAD_DATASET, train={"source": str(shared / "data/hh_helpful_base/odd.jsonl")})
    assert "8 of 8 rows (100.00%) are unusable, and filters.maxBadRows allows 1.00%" in message
    assert "empty_rejected 4, equal_answers 2, prompts_differ 2" in message
    assert "row 0 (counting from 0; odd.jsonl line 1), empty_rejected" in message
    assert {(row["split"], row["row"]) for row in place.dropped} == {("train", i) for i in range(8)}


def test_no_usable_row_fails_whatever_the_limit_is(place, shared):
    odd = {"source": str(shared / "data/hh_helpful_base/odd.jsonl")}
    assert "no usable pair in 8 rows" in place.refused(ExitCode.BAD_DATASET, train=odd, filters={"maxBadRows": 1})


def test_the_report_has_the_inputs_of_the_estimates(place):
    found = place.run()
    lengths = PairDataset.open(place.work.train_data).lengths
    assert (found.tokens.prompt, found.tokens.chosen, found.tokens.rejected) == tuple(lengths.mean(axis=0).round(2))
    assert found.tokens.longest == lengths.sum(axis=1).max()
    assert (found.model.hidden, found.model.layers, found.model.inner, found.model.vocabulary) == (4, 1, 8, 261)
    assert place.run() == found  # also when it was all there already


def test_a_model_without_estimate_is_still_prepared(place):
    path = place.model / "config.json"
    config = json.loads(path.read_text())
    del config["intermediate_size"]  # transformers has a default for it
    path.write_text(json.dumps(config))
    assert place.run().model is None


def test_a_second_run_keeps_everything(place):
    first = place.run(evalFraction=0.2)
    before = {path: path.stat().st_mtime_ns for path in place.work.root.rglob("*")}
    place.train.unlink()  # sources are not read again
    assert place.run(evalFraction=0.2) == first
    assert {path: path.stat().st_mtime_ns for path in place.work.root.rglob("*")} == before
    assert [share for _, share in place.progress] == [0.0, 1.0]


@pytest.mark.parametrize("label", [True, False])
def test_early_stopping_on_an_undefined_margin_is_refused(place, label):
    one_kind = write_jsonl(
        place.root / "eval.jsonl", [{"prompt": f"Ask {i}:", "completion": " yes", "label": label} for i in range(5)]
    )
    both = write_jsonl(
        place.root / "both.jsonl",
        [{"prompt": f"Say {i}:", "completion": " yes", "label": i % 2 == 0} for i in range(9)],
    )
    job = place.job(method="kto", train={"source": str(both)}, eval={"source": str(one_kind)})

    def run(metric: str) -> None:
        spec = job.spec.model_copy(update={"early_stopping": EarlyStopping(metric=metric)})
        watching = job.model_copy(update={"spec": spec})
        prepare.run(watching, place.work, Inputs(place.root))

    run("eval_loss")
    run("eval_reward_accuracy")
    with pytest.raises(TrainerError) as failure:
        run("eval_reward_margin")
    assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION
    assert f"all 5 evaluation examples are {'desirable' if label else 'undesirable'}; use eval_loss" in str(
        failure.value
    )


def test_progress_rises_from_0_to_1(place):
    place.run()
    shares = [share for _, share in place.progress]
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert shares == sorted(shares)
    assert all(activity for activity, _ in place.progress)


@pytest.mark.parametrize(
    "name", ["model/model.safetensors", "model/config.json", "data/train/tokens.npy", "data/eval/offsets.npy"]
)
def test_a_damaged_or_lost_file_is_made_again(place, name):
    first = place.run(evalFraction=0.2)
    path = place.work.root / name
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert place.run(evalFraction=0.2) == first
    assert path.read_bytes() == good
    path.unlink()
    assert place.run(evalFraction=0.2) == first
    assert path.read_bytes() == good


@pytest.mark.parametrize("text", ["", "{", "[]", '{"spec_hash": 1}'])
def test_a_damaged_prepared_json_is_made_again(place, text):
    first = place.run()
    place.work.prepared.write_text(text)
    assert place.run() == first


@pytest.mark.parametrize(
    "changes",
    [{"maxLength": 64}, {"evalFraction": 0.3}, {"filters": {"maxBadRows": 0.5}}, {"model": {"chatTemplate": CHATML}}],
)
def test_other_settings_are_prepared_again(place, changes):
    place.run()
    before = place.made["spec_hash"]
    place.run(**changes)
    assert place.made["spec_hash"] != before
    assert place.work.eval_data.exists() == ("evalFraction" in changes)


def test_a_folder_of_another_version_is_kept_only_with_checkpoints(place):
    place.run()
    own = place.made
    # Earlier versions did not say who prepared.
    for other in ({key: value for key, value in own.items() if key != "prepared_by"}, own | {"prepared_by": "another"}):
        place.work.prepared.write_text(json.dumps(other))
        place.run()
        assert place.made == own
    place.work.prepared.write_text(json.dumps(other))
    (place.work.checkpoints / folder_name(1)).mkdir(parents=True)
    place.run()
    assert place.made == other


def test_settings_that_do_not_affect_the_data_keep_the_hash(place):
    hashes = {
        spec_hash(place.job(model={"tokenSecretRef": {"name": "hf"}}, training={"seed": 1, "epochs": 2}).spec),
        spec_hash(place.job().spec),
    }
    assert len(hashes) == 1
    assert spec_hash(place.job(evalFraction=0.1, training={"seed": 1}).spec) != spec_hash(
        place.job(evalFraction=0.1).spec
    )


def test_a_folder_with_checkpoints_refuses_other_data(place):
    place.run()
    (place.work.checkpoints / "step-1").mkdir(parents=True)
    assert place.run().train_pairs == 20
    with pytest.raises(TrainerError, match="holds checkpoints of a run with another model or other data") as failure:
        place.run(maxLength=64)
    assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION
    assert place.run().train_pairs == 20


def edit(path: Path) -> bytes:
    """Write other content of the same size; returns what was there."""
    before = path.read_bytes()
    path.write_bytes(before.replace(b": ", b":\t", 1))
    return before


@pytest.mark.parametrize("name", ["train.jsonl", "eval.jsonl", "tiny/config.json", "tiny/tokenizer_config.json"])
def test_an_edited_file_of_the_same_name_is_prepared_again(place, name):
    write_jsonl(place.root / "eval.jsonl", rows(5))
    job = {"eval": {"source": str(place.root / "eval.jsonl")}, "model": {"chatTemplate": CHATML}}
    place.run(**job)
    made = place.work.prepared.stat().st_mtime_ns
    place.run(**job)
    assert place.work.prepared.stat().st_mtime_ns == made, "nothing changed"
    before = edit(place.root / name)
    place.run(**job)
    again = place.work.prepared.stat().st_mtime_ns
    assert again > made
    (place.root / name).touch()
    place.run(**job)
    assert place.work.prepared.stat().st_mtime_ns == again, "another time is no other content"

    (place.work.checkpoints / "step-1").mkdir(parents=True)
    (place.root / name).write_bytes(before)
    with pytest.raises(
        TrainerError, match=rf"{Path(name).name} has other content when.*holds checkpoints.*--fresh"
    ) as failure:
        place.run(**job)
    assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION
    assert place.work.prepared.stat().st_mtime_ns == again


def test_weights_that_were_edited_are_fetched_again(place):
    place.run()
    weights = place.model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\x01")
    place.run()
    assert (place.work.model / "model.safetensors").read_bytes()[-1] == 1


def test_files_that_come_and_go_in_a_folder_of_data(place):
    folder = place.root / "parts"
    write_jsonl(folder / "a.jsonl", rows(20))
    job = {"train": {"source": str(folder)}}
    assert place.run(**job).train_pairs == 20
    write_jsonl(folder / "b.jsonl", rows(10))
    assert place.run(**job).train_pairs == 30
    (folder / "a.jsonl").unlink()
    assert place.run(**job).train_pairs == 10


def test_prepared_data_outlive_their_sources(place):
    first = place.run()
    place.train.unlink()
    shutil.rmtree(place.model)
    assert place.run() == first


def test_same_inputs_give_the_same_tokens(tmp_path):
    made = []
    for name in ("a", "b"):
        here = Place(tmp_path / name)
        here.run(evalFraction=0.25)
        made.append((here.made["data"], here.made["model"]))
    assert made[0][0] == made[1][0]
    assert made[0][1]["weights"] == made[1][1]["weights"]


def test_held_out_pairs_are_not_trained_on(place):
    report = place.run(evalFraction=0.25)
    assert (report.train_pairs, report.eval_pairs) == (15, 5)
    train, evaluation = PairDataset.open(place.work.train_data), PairDataset.open(place.work.eval_data)
    kept, held = ({dataset[i].row for i in range(len(dataset))} for dataset in (train, evaluation))
    assert kept | held == set(range(20))
    assert not kept & held


def test_a_held_out_share_that_leaves_nothing(place):
    write_jsonl(place.train, rows(3))
    assert "leaves 3 to train on and 0" in place.refused(ExitCode.BAD_DATASET, evalFraction=0.1)


def test_filtered_rows_are_not_bad_rows(place):
    write_jsonl(place.train, rows(5, confidence=0.9) + rows(5, confidence=0.1))
    report = place.run(filters={"minConfidence": 0.5, "maxBadRows": 0})
    assert (report.train_pairs, report.dropped) == (5, {"low_confidence": 5})


def test_a_filter_without_its_column(place):
    message = place.refused(ExitCode.INVALID_CONFIGURATION, filters={"minConfidence": 0.5})
    assert "column confidence, and no row has one; found columns prompt, chosen, rejected" in message


def test_bad_rows_up_to_the_limit_are_left_out(place):
    with place.train.open("ab") as file:
        file.write(b'{"prompt": \n{"prompt": "caf\xe9"}\n')
    report = place.run(filters={"maxBadRows": 0.1})
    assert (report.train_pairs, report.dropped) == (20, {"malformed_json": 1, "not_utf8": 1})
    assert [(row["row"], row["reason"]) for row in place.dropped] == [(20, "malformed_json"), (21, "not_utf8")]
    assert "train: 2 of 22 rows (9.09%)" in place.refused(ExitCode.BAD_DATASET, filters={"maxBadRows": 0.09})


def test_wrong_columns_are_named(place):
    write_jsonl(place.train, [{"question": "Q", "good": "a", "bad": ["b"]}] * 3)
    message = place.refused(ExitCode.BAD_DATASET)
    assert "found question (str), good (str), bad (list)" in message
    assert "columns found are question, good, bad" in place.refused(
        ExitCode.BAD_DATASET, train={"source": str(place.train), "format": "pairs"}
    )


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file(place, text):
    place.train.write_text(text)
    assert "no usable pair in 0 rows (no rows at all)" in place.refused(ExitCode.BAD_DATASET)


def test_a_row_of_10_mb_is_one_bad_row(place):
    write_jsonl(place.train, [*rows(3), {"prompt": "Q", "chosen": "x" * 10_000_000, "rejected": "b"}])
    report = place.run(filters={"maxBadRows": 0.3})
    assert (report.train_pairs, report.dropped) == (3, {"row_too_big": 1})
    assert "10000002 characters; up to 1000000 are read" in place.dropped[0]["detail"]


def test_rows_of_another_format_are_counted(place):
    odd = [{"prompt": "Q", "completion": "a", "label": True}, {"messages": []}, [1], "text", None, 3, {}]
    write_jsonl(place.train, [*rows(20), *odd])
    report = place.run(filters={"maxBadRows": 0.5})
    assert (report.train_pairs, report.dropped) == (
        20, {"missing_column": 2, "not_an_object": 4, "other_format": 1},
    )  # fmt: skip
    assert place.dropped[0]["detail"].startswith("the row looks like unpaired, and the data are read as pairs")


def test_a_system_column_needs_messages_and_must_be_there(place):
    source = {"source": str(place.train)}
    message = place.refused(
        ExitCode.INVALID_CONFIGURATION, train=source | {"columns": {"system": "system"}, "format": "pairs"}
    )
    assert "columns.system is for chat messages, and the data are read as pairs" in message
    message = place.refused(ExitCode.INVALID_CONFIGURATION, train=source | {"columns": {"system": "sys"}})
    assert (
        "columns.system is sys, and none of the first 20 rows has it; found columns prompt, chosen, rejected" in message
    )


def test_a_file_of_noise(place):
    place.train.write_bytes(os.urandom(4000).replace(b"[", b"x") + b"\n\xff\n")
    assert "rows (100.00%) are unusable" in place.refused(ExitCode.BAD_DATASET)


def test_limit_reads_the_first_rows(place):
    report = place.run(train={"source": str(place.train), "limit": 7})
    assert report.train_pairs == 7


def test_a_bad_evaluation_split_is_named(place):
    bad = write_jsonl(place.root / "bad.jsonl", [{"prompt": "Q", "chosen": "a", "rejected": "a"}])
    assert place.refused(ExitCode.BAD_DATASET, eval={"source": str(bad)}).startswith("eval: 1 of 1 rows")


def test_pairs_longer_than_the_models_context(place):
    tiny_model(place.model, config={"max_position_embeddings": 32})
    write_jsonl(place.train, [*rows(3), {"prompt": "x" * 40, "chosen": "a", "rejected": "b"}])
    message = place.refused(ExitCode.INVALID_CONFIGURATION)
    assert "the longest pair has 43 tokens" in message
    assert "set data.maxLength to 32 or less" in message
    assert place.run(maxLength=32).truncated_pairs == 1


def test_a_tokenizer_of_another_model(place):
    tiny_model(place.model, config={"vocab_size": 100})
    assert "gives token 258" in place.refused(ExitCode.INVALID_CONFIGURATION)


def test_a_chat_template_of_the_job_replaces_the_models(place):
    chats = [{"prompt": [{"role": "user", "content": f"Q{i}"}], "chosen": "yes", "rejected": "no"} for i in range(3)]
    write_jsonl(place.train, chats)
    assert "no chat template" in place.refused(ExitCode.INVALID_CONFIGURATION)
    tiny_model(place.model, template="{{ 'wrong' }}")
    place.run(model={"chatTemplate": CHATML})
    saved = load_tokenizer(place.work.model, "m")
    assert saved.chat_template == CHATML
    assert saved.decode(PairDataset.open(place.work.train_data)[0].prompt).startswith("<|im_start|>user\nQ0")


def test_a_sharded_model_from_a_claim(place):
    tiny_model(place.root / "models" / "tiny", shards=2)
    place.run(model={"name": "pvc://models/tiny"})
    assert place.made["model"]["kind"] == "claim"
    names = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert set(place.made["model"]["weights"]) == names
    assert {path.name for path in place.work.model.glob("*.safetensors")} == names


def test_a_missing_model_and_missing_data(place):
    assert "no such file or folder" in place.refused(ExitCode.INPUT_NOT_FOUND, model={"name": "./no/model"})
    assert "no such file or folder" in place.refused(ExitCode.INPUT_NOT_FOUND, train={"source": "/no/data.jsonl"})
    assert "no such user" in place.refused(ExitCode.INPUT_NOT_FOUND, train={"source": "~nobody-here/data.jsonl"})


def test_damaged_weights_are_refused(place):
    path = place.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "not a whole safetensors file" in place.refused(ExitCode.INVALID_CONFIGURATION)


def test_the_models_source_is_not_changed_and_not_linked(place):
    before = {path.name: path.read_bytes() for path in place.model.iterdir()}
    place.run(model={"chatTemplate": CHATML})
    (place.work.model / "model.safetensors").write_bytes(b"")
    assert {path.name: path.read_bytes() for path in place.model.iterdir()} == before


def test_an_interrupted_run_is_finished_by_the_next(place):
    """Killed at every progress report in turn, prepare ends with the same files as if it never was."""
    whole = Place(place.root / "whole")
    whole.train.write_text(place.train.read_text())
    expected = whole.run(evalFraction=0.2)
    reports = len(whole.progress)
    for stop in range(1, reports):
        seen = 0

        def kill(activity: str, share: float, stop: int = stop) -> None:
            nonlocal seen
            seen += 1
            if seen == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare.run(place.job(evalFraction=0.2), place.work, Inputs(place.root, progress=kill))
        place.work.prepared.unlink(missing_ok=True)
    assert place.run(evalFraction=0.2) == expected
    assert place.made["data"] == whole.made["data"]
    assert sorted(p.name for p in place.work.root.iterdir()) == ["data", "model", "prepared.json"]


def test_a_full_volume_is_a_volume_error(place):
    """A limit on the size of files stands in for a volume that is full."""
    script = (
        "import resource, signal, sys, json; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from dpo_operator.api.types import DPOJob; from dpo_trainer.prepare import inputs, phase; from dpo_trainer.runtime import errors, workdir\n"
        "job = DPOJob.model_validate_json(sys.argv[1]); root = Path(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try: phase.run(job, workdir.WorkDir(root), inputs.Inputs(root))\n"
        "except errors.TrainerError as error: print(int(error.exit_code), error)\n"
    )
    job = place.job().model_dump_json(by_alias=True, exclude_none=True)
    done = subprocess.run([sys.executable, "-c", script, job, str(place.work.root)], capture_output=True, text=True)
    assert done.stdout.startswith(f"{int(ExitCode.VOLUME_ERROR)} "), done.stderr[-3000:]
    assert os.strerror(errno.EFBIG) in done.stdout
    assert not place.work.prepared.exists()


def test_an_adapter_is_fetched_with_its_template(place):
    adapter = an_adapter(place.root / "sft")
    (adapter / "chat_template.jinja").write_text(CHATML)
    (adapter / "modeling.py").write_text("raise SystemExit")
    chat = [{"role": "user", "content": "w w"}]
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    write_jsonl(place.train, [{"prompt": [{**chat[0], "content": f"w {i}"}], **answers} for i in range(20)])
    place.run(model={"adapter": {"name": str(adapter)}})
    folder = place.work.model / "adapter"
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
    }
    assert (place.work.model / "chat_template.jinja").read_text() == CHATML
    assert place.made["model"]["adapter"]["base"] == "org/base"
    assert "adapter/adapter_model.safetensors" in place.made["model"]["weights"]
    key = place.made["spec_hash"]
    place.run(model={"adapter": {"name": str(adapter)}})
    assert ("looking for earlier work", 0.0) in place.progress
    assert len(place.progress) == 2  # nothing was done again
    # The file where it came from, and its copy.
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace("org/base", "org/else"))
    place.run(model={"adapter": {"name": str(adapter)}})
    assert place.made["model"]["adapter"]["base"] == "org/else"
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    place.run(model={"adapter": {"name": str(adapter)}})
    assert len(place.progress) > 2
    assert place.made["spec_hash"] == key != spec_hash(place.job().spec)


def test_an_adapter_that_can_not_be_read_is_refused(place):
    adapter = an_adapter(place.root / "sft", peft_type="IA3")
    message = place.refused(ExitCode.INVALID_CONFIGURATION, model={"adapter": {"name": str(adapter)}})
    assert "expected a LORA adapter of CAUSAL_LM, found 'IA3'" in message


def test_another_reference_is_fetched_when_its_tokens_are_the_same(place):
    other = tiny_model(place.root / "other", config={"num_hidden_layers": 1})
    place.run(model={"reference": {"name": str(other)}})
    made = place.made["reference_model"]
    assert made["source"] == str(other)
    assert {path.name for path in place.work.reference_model.iterdir()} == made["weights"].keys() | made["files"].keys()
    place.run(model={"reference": {"name": str(other)}})
    assert len(place.progress) == 2  # nothing was done again
    (place.work.reference_model / "config.json").write_text("{}")
    place.run(model={"reference": {"name": str(other)}})
    assert len(place.progress) > 2


def test_another_reference_with_other_tokens_is_refused(place):
    other = tiny_model(place.root / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = place.refused(ExitCode.INVALID_CONFIGURATION, model={"reference": {"name": str(other)}})
    assert "has another tokenizer: 2 of 261 tokens differ, such as 'a', which is" in message


def test_a_selection_that_the_pairs_do_not_allow_is_refused(place):
    def refused(**selection) -> str:
        with pytest.raises(TrainerError) as failure:
            place.run(training={"selection": selection, "globalBatchSize": 4})
        assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION
        return str(failure.value)

    assert "scoreGap needs scores of both answers, and 20 of 20 training pairs have none" in refused(by="scoreGap")
    assert "spec.training.selection: keep.quantiles leave none" in refused(
        by="rewardGap", keep={"quantiles": [0, 0.01]}
    )
    # The folder is prepared: other settings go on with it.
    place.run(training={"selection": {"by": "rewardGap"}, "globalBatchSize": 4})


def test_scores_of_the_rows_are_kept_for_a_selection(place):
    found = [row | {"score_chosen": 5 + i, "score_rejected": 2} for i, row in enumerate(rows(6))]
    write_jsonl(place.train, found)
    other = write_jsonl(place.root / "other.jsonl", rows(3))
    place.run(
        training={"selection": {"by": "scoreGap"}, "globalBatchSize": 2},
        train={"source": str(place.train), "weight": 2.0},
    )
    assert PairDataset.open(place.work.train_data).score_gaps.tolist() == [3, 4, 5, 6, 7, 8] * 2
    shutil.rmtree(place.work.root)
    with pytest.raises(TrainerError, match="and 3 of 9 training pairs have none"):
        place.run(training={"selection": {"by": "scoreGap"}, "globalBatchSize": 2}, mixture=[{"source": str(other)}])
    assert np.isnan(PairDataset.open(place.work.train_data).score_gaps).tolist() == [False] * 6 + [True] * 3
