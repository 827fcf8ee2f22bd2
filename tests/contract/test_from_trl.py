"""The page for users of TRL, against TRL's own sources: they are parsed, not imported, which takes seconds. A new setting of TRL fails."""

import ast
import importlib.util
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_operator.api.base import ApiModel
from dpo_operator.api.method import MethodName
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.cli import jobfile
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.contract

PAGE = REPOSITORY / "docs" / "from-trl.md"
EXAMPLE = REPOSITORY / "examples" / "jobs" / "walkthrough.yaml"
CONFIGS = {
    "DPO": ("trl/trainer/dpo_config.py", "DPOConfig"),
    "KTO": ("trl/trainer/kto_config.py", "KTOConfig"),
    "CPO": ("trl/experimental/cpo/cpo_config.py", "CPOConfig"),
    "ORPO": ("trl/experimental/orpo/orpo_config.py", "ORPOConfig"),
}
# What they inherit from, the first one last.
PARENTS = (("transformers/training_args.py", "TrainingArguments"), ("trl/trainer/base_config.py", "_BaseConfig"))


def section(heading: str) -> str:
    """The page's text between a heading and the next one."""
    return re.split(r"^#+ ", PAGE.read_text(encoding="utf-8").split(f"# {heading}\n")[1], flags=re.MULTILINE)[0]


def cells(heading: str) -> list[list[str]]:
    """The rows of a section's table without its head and the lines that only divide it."""
    rows = [line.strip("| ").split(" | ") for line in section(heading).splitlines() if line.startswith("|")]
    return [[cell.strip(" |") for cell in row] for row in rows[2:] if not row[0].startswith("**")]


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@cache
def class_of(path: str, name: str) -> ast.ClassDef:
    package, _, rest = path.partition("/")
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations
    tree = ast.parse((Path(found.submodule_search_locations[0]) / rest).read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def keywords(call: ast.expr | None) -> dict[str, ast.expr]:
    assert isinstance(call, ast.Call)
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def declared(path: str, name: str) -> dict[str, dict[str, ast.expr]]:
    """The fields that a class declares itself, with the keywords of their field()."""
    body = class_of(path, name).body
    return {
        node.target.id: keywords(node.value)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value
    }


def fields(kind: str) -> dict[str, dict[str, ast.expr]]:
    found: dict[str, dict[str, ast.expr]] = {}
    for source in (*PARENTS, CONFIGS[kind]):
        found |= declared(*source)
    return found


def default(field: dict[str, ast.expr]) -> str:
    """The default as its source has it."""
    if "default" in field:
        return ast.unparse(field["default"])
    factory = field["default_factory"]
    return ast.unparse(factory.body) if isinstance(factory, ast.Lambda) else f"{ast.unparse(factory)}()"


def has(path: str) -> bool:
    """Whether spec has this field: a path of camelCase names."""
    model: Any = DPOJobSpec
    for key in path.split("."):
        found = [field for name, field in model.model_fields.items() if (field.alias or name) == key]
        if not found:
            return False
        model = next((kind for kind in kinds(found[0].annotation) if issubclass(kind, ApiModel)), type)
        if model is type:
            return path.endswith(key)
    return True


def kinds(annotation: Any) -> list[type]:
    """The classes in an annotation such as list[Dataset] | None."""
    inside = getattr(annotation, "__args__", ())
    return [kind for part in inside for kind in kinds(part)] or ([annotation] if isinstance(annotation, type) else [])


SETTINGS = cells("Each setting")


def test_the_page_is_about_the_installed_version() -> None:
    assert f"TRL {'.'.join(version('trl').split('.')[:2])}'s" in PAGE.read_text(encoding="utf-8")


def test_every_setting_of_trl_is_on_the_page_once() -> None:
    named = [spans(row[0])[0] for row in SETTINGS]
    without = spans(section("Settings of transformers without a counterpart").split(":\n")[1])
    assert len({*named, *without}) == len([*named, *without])
    assert {*named, *without} == {name for kind in CONFIGS for name in fields(kind)}
    own = {name for source in CONFIGS.values() for name in declared(*source)}
    assert own & set(without) == set()


@pytest.mark.parametrize("row", SETTINGS, ids=[row[0].strip("`") for row in SETTINGS])
def test_a_setting_has_its_default_and_its_field(row: list[str]) -> None:
    name, where, values, field = row[:4]
    having = [kind for kind in CONFIGS if spans(name)[0] in fields(kind)]
    assert where == ("all" if len(having) == len(CONFIGS) else ", ".join(having))
    assert spans(values) == list(dict.fromkeys(default(fields(kind)[spans(name)[0]]) for kind in having))
    if field == "none":
        assert len(row) == 5, "what happens instead is not said"
    else:
        assert spans(field)
        assert [path for path in spans(field) if not has(path)] == []


def test_every_loss_type_is_on_the_page() -> None:
    listed: dict[str, set[str]] = {}
    for names, kind, _ in cells("Losses"):
        listed.setdefault(kind, set()).update(spans(names))
    for kind in ("DPO", "KTO", "CPO"):
        metadata = ast.literal_eval(fields(kind)["loss_type"]["metadata"])
        said = metadata.get("choices") or re.findall(r"`'(\w+)'`", metadata["help"])
        assert listed[kind] == set(said)


def test_what_a_loss_becomes_is_a_method() -> None:
    written = [yaml.safe_load(f"{{{span}}}") for row in cells("Losses") for span in spans(row[2]) if ":" in span]
    assert len(written) >= 8
    for method in written:
        assert [name for name in method if not has(f"method.{name}")] == []
        assert method.get("name", "dpo") in set(MethodName)


def test_what_lora_s_settings_become_are_fields() -> None:
    said = cells("Arguments of DPOTrainer")[-1][2]
    pairs = re.findall(r"`(\w+)`: `(\w+)`", said)
    assert len(pairs) >= 6
    lora = declared("peft/tuners/lora/config.py", "LoraConfig")
    assert [pair for pair in pairs if pair[0] not in lora or not has(f"adapter.{pair[1]}")] == []


def test_every_argument_of_the_trainer_is_on_the_page() -> None:
    trainer = class_of("trl/trainer/dpo_trainer.py", "DPOTrainer")
    made = next(node for node in trainer.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    rows = cells("Arguments of DPOTrainer")
    assert [spans(row[0])[0] for row in rows] == [argument.arg for argument in made.args.args[1:]]
    assert [path for row in rows for path in spans(row[1]) if not has(path)] == []


def test_the_script_and_its_job_say_the_same() -> None:
    script, shown = re.findall(r"^```\w+\n(.*?)^```$", section("A script and its job"), re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(shown) == yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["spec"]
    calls = [call for call in ast.walk(ast.parse(script)) if isinstance(call, ast.Call)]
    said = {
        name: ast.literal_eval(value)
        for call in calls
        for name, value in keywords(call).items()
        if not isinstance(value, ast.Call | ast.Name)
    }
    job = jobfile.read(EXAMPLE).spec
    assert said.pop("output_dir")
    pairs = said.pop("gradient_accumulation_steps") * said["per_device_train_batch_size"]
    assert pairs == job.training.global_batch_size
    assert said == {
        "r": job.adapter.rank,
        "lora_alpha": job.adapter.alpha,
        "target_modules": job.adapter.target_modules,
        "beta": job.method.beta,
        "per_device_train_batch_size": job.training.micro_batch_size,
        "learning_rate": job.learning_rate,
        "num_train_epochs": job.training.epochs,
    }
    unsaid = {name: ast.literal_eval(default(fields("DPO")[name])) for name in ("lr_scheduler_type", "warmup_steps")}
    unsaid |= {name: ast.literal_eval(default(fields("DPO")[name])) for name in ("max_length", "seed", "max_grad_norm")}
    assert unsaid == {
        "lr_scheduler_type": job.training.scheduler,
        "warmup_steps": job.training.warmup_ratio,
        "max_length": job.data.max_length,
        "seed": job.training.seed,
        "max_grad_norm": job.training.max_grad_norm,
    }
