"""What the pages say is what the code does: their YAML is valid, their defaults and names are the code's, their links lead somewhere."""

import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dpo_operator.api import names
from dpo_operator.api.data import Columns
from dpo_operator.api.method import AddedLoss, Method, MethodName
from dpo_operator.api.rules import spec as rules
from dpo_operator.api.rules import support
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_operator.cli import jobfile
from dpo_trainer.data.formats import Rejection, detect, normalize, read_rows
from dpo_trainer.data.formats.pairs import ChatPair, Reason, TextPair
from dpo_trainer.data.report import warnings
from dpo_trainer.losses.objective import Logps, Objective
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.contract

DOCS = REPOSITORY / "docs"
METHODS = sorted((DOCS / "methods").glob("*.md"))
PAGES = [REPOSITORY / "README.md", REPOSITORY / "examples" / "README.md", *sorted(DOCS.rglob("*.md"))]
JOBS = sorted((REPOSITORY / "examples").glob("methods/*.yaml"))
NOT_IN_TABLES = {"README", "combined"}


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """What follows the language on each fenced block's first line, and the block."""
    found = re.findall(rf"^```{language}(.*)\n((?:.*\n)*?)```$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [(rest.strip(), text) for rest, text in found]


def without_code(page: Path) -> str:
    """A page's text without its code spans, which may hold brackets."""
    return re.sub(r"`[^`\n]*`", "", page.read_text(encoding="utf-8"))


def label(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(one[key], dict)}
    return {**one, **other, **both}


def job_of(text: str) -> dict[str, Any]:
    """A block as a whole DPOJob; a part of a spec is completed by a model and data."""
    document = yaml.load(text, Loader=jobfile._Loader)
    if "kind" in document:
        return document
    least = {"model": {"name": "org/model"}, "data": {"train": {"source": "org/pairs"}}}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "a-job"},
        "spec": merged(least, document),
    }


def settings(page: Path) -> list[tuple[str, str]]:
    """Field and default of each line of the table of a method's page."""
    section = page.read_text(encoding="utf-8").split("## Settings")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE)


YAML = [
    pytest.param(text, id=f"{label(page)}-{number}")
    for page in PAGES
    for number, (_, text) in enumerate(blocks(page, "yaml"))
]


@pytest.mark.parametrize("text", YAML)
def test_each_yaml_block_is_a_job_that_runs(text: str) -> None:
    job = DPOJob.model_validate(job_of(text))
    assert rules.violations(job) == []
    assert support.unsupported(job.spec) == []


def test_each_method_has_a_page_an_example_and_a_line_in_the_overview() -> None:
    overview = (DOCS / "methods" / "README.md").read_text(encoding="utf-8")
    jobs = [jobfile.read(path).spec.method.name for path in JOBS]
    for method in MethodName:
        page = DOCS / "methods" / f"{method}.md"
        assert f"]({method}.md)" in overview
        headings = re.findall(r"^## (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        wanted = ["When to use it", "Formula", "Settings", "Where projects differ", "What to watch", "Failure modes"]
        assert [heading for heading in headings if heading in wanted] == wanted, page
        assert method in jobs
        methods = [Method.model_validate(job_of(text)["spec"]["method"]) for _, text in blocks(page, "yaml")]
        assert all(found.name is method for found in methods)
        assert methods, page


def test_defaults_on_the_method_pages_are_those_of_the_types() -> None:
    stated = 0
    for page in METHODS:
        if page.stem in NOT_IN_TABLES:
            continue
        method = Method(name=MethodName(page.stem))
        defaults = method.model_dump(mode="json", by_alias=True) | {
            "beta": method.strength,
            "nllWeight": method.likelihood_weight,
            "marginRatio": method.target_margin / method.strength,
            "margin": method.target_margin,
            "marginPerScore": 0.0,
            "lengthDesensitization": method.tail_weight,
            "reduction": "mean",
            "desirableWeight": 1.0,
            "undesirableWeight": 1.0,
        }
        for setting, written in settings(page):
            assert yaml.safe_load(written) == defaults[setting], f"{page.name}: {setting}"
            stated += 1
    assert stated > 25


def test_the_defaults_that_the_overview_names_are_those_of_the_types() -> None:
    text = (DOCS / "methods" / "README.md").read_text(encoding="utf-8")
    spec = DPOJob.model_validate(job_of("{}")).spec
    written = dict(re.findall(r"^\| (`training\.[^|]+) \| ([^|]+) \|", text, re.MULTILINE))
    assert len(written) >= 6
    with_adapter = DPOJob.model_validate(job_of("adapter: {type: lora}")).spec
    for fields, value in written.items():
        keys = re.findall(r"`training\.(\w+)`", fields)
        values = spec.training.model_dump(mode="json", by_alias=True)
        if keys == ["learningRate"]:
            assert value == f"{spec.learning_rate:.0e}; {with_adapter.learning_rate:.0e} with adapters".replace(
                "e-0", "e-"
            )
            continue
        assert [yaml.safe_load(part) for part in value.split(",")] == [values[key] for key in keys], fields


def test_the_first_losses_of_the_overview_are_those_of_the_objective() -> None:
    text = (DOCS / "methods" / "README.md").read_text(encoding="utf-8")
    written = dict(re.findall(r"^\| `([\w-]+)` \|.*\| ([\w.]+) \|$", text.split("## What it costs")[0], re.MULTILINE))
    assert set(written) == set(MethodName)
    same = torch.tensor([[-20.0, -30.0], [-9.0, -4.0]], dtype=torch.float64)
    logps = Logps(same, same / 2, torch.tensor([[8, 12], [6, 3]]), reference=same, reference_head=same / 2)
    for name, value in written.items():
        objective = Objective(Method(name=MethodName(name)))
        if value == "any":
            assert not objective.needs_reference
            continue
        loss = objective.first_loss(logps).sum() / objective.units(logps.tokens)
        assert loss.item() == pytest.approx(float(value), abs=5e-4), name


# A value that is not the default, with what it needs.
OTHER_VALUES: dict[str, dict[str, Any]] = {
    "labelSmoothing": {"labelSmoothing": 0.1},
    "robust": {"robust": True, "labelSmoothing": 0.1},
    "reduction": {"reduction": "sum"},
    "nllOver": {"nllOver": "all", "nllWeight": 1},
}


@pytest.mark.parametrize("name", [name.value for name in MethodName])
def test_the_settings_of_a_methods_page_are_those_that_it_has(name: str) -> None:
    on_page = [setting for setting, _ in settings(DOCS / "methods" / f"{name}.md")]
    for setting in {*on_page, *OTHER_VALUES, "lengthDesensitization", "margin", "desirableWeight", "nllWeight"}:
        method = {"name": name, **OTHER_VALUES.get(setting, {setting: 1})}
        broken = rules.violations(DPOJob.model_validate(job_of(json.dumps({"method": method}))))
        refused_on_page = name == "kto" and setting == "nllWeight"
        if setting in on_page and not refused_on_page:
            assert broken == [], setting
        elif setting not in ("nllWeight", "nllOver", "margin"):
            assert broken, f"{setting} is not on the page, and allowed"


def test_every_setting_of_the_losses_is_on_some_page() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in METHODS)
    fields = {field.alias for model in (Method, AddedLoss) for field in model.model_fields.values()} - {None}
    assert {field for field in fields if f"`{field}" not in text and f"{field}:" not in text} == set()


ROWS = [
    pytest.param(row_format, line, id=f"{row_format}-{number}")
    for row_format, text in blocks(DOCS / "data.md", "json")
    if row_format and row_format != "rated"
    for number, line in enumerate(text.splitlines())
]


@pytest.mark.parametrize(("row_format", "line"), ROWS)
def test_each_row_of_the_page_on_data_is_read_as_it_says(row_format: str, line: str) -> None:
    row = json.loads(line)
    assert detect([row], Columns()) == row_format
    pair = normalize(row, row_format, Columns())  # type: ignore[arg-type]
    assert isinstance(pair, TextPair | ChatPair), pair
    assert "apple" in str(pair.chosen or "apple") or "flour" in str(pair.chosen)
    assert pair.rejected is None or "apple" not in str(pair.rejected)


def test_the_rated_rows_of_the_page_on_data_are_a_pair() -> None:
    (text,) = (text for row_format, text in blocks(DOCS / "data.md", "json") if row_format == "rated")
    rows = [json.loads(line) for line in text.splitlines()]
    assert detect(rows, Columns()) == "rated"
    ((_, _, pair),) = read_rows(enumerate(rows), "rated", Columns())
    assert isinstance(pair, TextPair)
    assert (pair.chosen, pair.rejected) == ("An apple.", "A carrot.")


def test_the_data_page_names_every_format_reason_column_and_filter() -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    data = DPOJobSpec.model_json_schema(by_alias=True)["$defs"]
    formats = data["Dataset"]["properties"]["format"]["enum"]
    assert [f"### {name}" in text for name in formats if name != "auto"] == [True] * (len(formats) - 1)
    assert {reason for reason in Reason if f"`{reason}`" not in text} == set()
    bad, asked = text.split("Some reasons are faults.")[1].split("Others are what you asked for")
    asked = asked.split("\n\n")[0]
    for reason in Reason:
        written = bad if Rejection(reason, "").is_bad else asked
        assert f"`{reason}`" in written, reason
    wanted = [
        *data["Columns"]["properties"],
        *data["Data"]["properties"]["truncation"]["enum"],
        *data["Filters"]["properties"],
        *data["Condition"]["properties"]["operator"]["enum"],
    ]
    assert [name for name in wanted if f"`{name}`" not in text] == []


def test_the_page_on_data_names_the_bounds_of_the_reports_warnings() -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8").split("## The report")[1]
    assert re.findall(r"(\d+%) (?:of the pairs|prompt|truncated)", text.replace("\n", " ")) == [
        f"{bound:.0%}" for bound in (warnings.ONE_SIDED, warnings.PROMPT_SHARE, warnings.TRUNCATED)
    ]


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", without_code(page)):
        if target and not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_into_a_page_find_their_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]*)\)", without_code(page)):
        if target.startswith("https://"):
            continue
        text = ((page.parent / target) if target else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in slugs, f"{target}#{anchor}"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_each_example_of_a_method_is_a_job_that_runs(path: Path) -> None:
    job = jobfile.read(path)
    assert job.metadata.name == f"try-{path.stem}"
    for data in job.spec.data.datasets:
        assert Path(data.source).is_file(), data.source


def test_the_unpaired_example_is_made_from_the_pairs_of_the_quickstart() -> None:
    script = REPOSITORY / "examples" / "methods" / "make_data.py"
    module_spec = importlib.util.spec_from_file_location("make_data", script)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    text = module.UNPAIRED.read_text(encoding="utf-8")
    assert text == module.unpaired()
    rows = [json.loads(line) for line in text.splitlines()]
    found = [normalize(row, "unpaired", Columns()) for row in itertools.islice(rows, 30)]
    assert {type(pair) for pair in found} == {TextPair}
    assert sum(row["label"] for row in rows) == pytest.approx(2 / 3 * len(rows), abs=1)


def test_the_tests_that_the_security_page_names_exist() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / "security.md").read_text(encoding="utf-8")))
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in (REPOSITORY / file).read_text(encoding="utf-8"), f"{file}::{name}"
