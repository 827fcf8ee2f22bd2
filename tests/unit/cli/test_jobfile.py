from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_operator.api.allowed.allow import Allow
from dpo_operator.cli.jobfile import JobFileError, read

pytestmark = pytest.mark.unit

JOB = """\
apiVersion: dpo-operator.dev/v1alpha1
kind: DPOJob
metadata: {name: a}
spec:
  model: {name: ./model}
  data: {train: {source: ../pairs.jsonl}, eval: {source: org/pairs}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def test_paths_are_taken_from_the_files_own_folder(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    spec = read(write(tmp_path / "jobs", JOB)).spec
    assert spec.model.name == str(tmp_path / "jobs" / "model")
    assert spec.data.train.source == str(tmp_path / "pairs.jsonl")
    assert spec.data.eval is not None
    assert spec.data.eval.source == "org/pairs"


def test_numbers_and_texts_are_read_as_kubectl_reads_them(tmp_path: Path) -> None:
    text = JOB.replace("./model", "./model, revision: 2026-01-01") + "  training: {learningRate: 5e-7, epochs: 2}\n"
    spec = read(write(tmp_path, text)).spec
    assert (spec.learning_rate, spec.training.epochs, spec.model.revision) == (5e-7, 2.0, "2026-01-01")


def test_other_documents_are_passed_over(tmp_path: Path) -> None:
    assert read(write(tmp_path, "kind: Secret\n---\n" + JOB)).metadata.name == "a"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected one document of kind DPOJob, found 0"),
        (JOB + "---\n" + JOB, "found 2"),
        ("a: [", "is not YAML"),
        ("- DPOJob", "found 0"),
        (JOB.replace("name: a", "name: A"), "metadata.name"),
        (JOB.replace("v1alpha1", "v2"), "apiVersion"),
        (JOB + "  nodes: many\n", "spec.nodes: Input should be a valid integer"),
        (JOB + "  typo: 1\n", "spec.typo: Extra inputs are not permitted"),
        (JOB + "  method: {label_smoothing: 0.1}\n", "spec.method.label_smoothing: Extra inputs are not permitted"),
        (JOB + "  training: {offload: nvme}\n", "spec.training.offload: nvme is not implemented yet"),
        (JOB.replace("model: {name: ./model}", "model: nonsense"), "spec.model"),
        ("kind: DPOJob\nspec: 7\n", "spec"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(JobFileError, match=says.replace(".", r"\.")):
        read(write(tmp_path, text))


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    text = JOB + "  method: {name: ipo, beta: 0, margin: 1, labelSmoothing: 2, robust: true}\n  gpusPerNode: 0\n"
    text = text.replace("name: ./model", "nme: ./model").replace(
        "eval: {source", "mixture: [{}, {source: 7}], eval: {source"
    )
    text += "  training: {device: cuda, zeroStage: 2}\n  nodes: many\n  pod: {resources: {limits: {'a b': 1}}}\n"
    with pytest.raises(JobFileError) as caught:
        read(write(tmp_path, text))
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        *("spec.model.name", "spec.model.nme", "spec.data.mixture[0].source", "spec.data.mixture[1].source"),
        *("spec.method.beta", "spec.method.labelSmoothing", "spec.nodes", "spec.pod.resources.limits.a b.[key]"),
        # Not method.robust, whose rule looks at labelSmoothing: what that should have been is not known.
        *("spec.method.margin", "spec.training.device", "spec.training.zeroStage"),
    ]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match="nothing-here"):
        read(tmp_path / "nothing-here.yaml")


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
        lambda c: (
            st.lists(c, max_size=3)
            | st.dictionaries(st.sampled_from(["model", "data", "train", "name", "source", "x"]), c, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_no_spec_escapes_as_a_traceback(tmp_path_factory: pytest.TempPathFactory, spec: object) -> None:
    import yaml

    path = tmp_path_factory.mktemp("fuzz") / "job.yaml"
    path.write_text(yaml.safe_dump({"kind": "DPOJob", "metadata": {"name": "a"}, "spec": spec}))
    with pytest.raises(JobFileError):
        read(path)


def test_a_variable_on_no_list_is_refused_here_too(tmp_path: Path) -> None:
    path = write(tmp_path, JOB + "  pod: {env: [{name: NCCL_DEBUG}, {name: WANDB_BASE_URL, value: 'http://x'}]}\n")
    with pytest.raises(JobFileError, match=r"spec.pod.env: WANDB_BASE_URL is not one of"):
        read(path)
    assert len(read(path, Allow(env=("WANDB_*",))).spec.pod.env) == 2
