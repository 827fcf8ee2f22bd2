"""report.html: whole, escaped, without a script or a request, and written beside an export that it can't harm."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.diagnosis import Code, Figure, Finding
from dpo_operator.api.reports import Progress, PushReport, RoundReport
from dpo_operator.api.types import DPOJob
from dpo_trainer import phases
from dpo_trainer.commands.page.charts import Series, chart, ticks
from dpo_trainer.commands.page.html import PAGE
from dpo_trainer.commands.report import write_page
from dpo_trainer.commands.run_log import read_run
from dpo_trainer.rounds import record
from dpo_trainer.runtime import termination
from dpo_trainer.runtime.workdir import WorkDir
from tests.unit.trainer.commands.test_report import a_run

pytestmark = pytest.mark.unit

EVIL = "</pre><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>&\" '{{7*7}}\u202e\x1b[2J"
FINDING = Finding(
    code=Code.GIBBERISH, severity="Unhealthy", step=10, setting="training.learningRate", suggestion="Lower it to 1e-4.",
    cause="The policy's answers repeat themselves.", figures=(Figure(name="samples/greedy/repeated_4grams", value=0.85, limit=0.25),),
)  # fmt: skip
EMPTY = {"meta", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Tags, attributes and text; each tag that is opened must be closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def a_job(name: str = "helpful", **spec: Any) -> DPOJob:
    least = {"model": {"name": "org/model"}, "data": {"train": {"source": "org/pairs"}}, "nodes": 2, "gpusPerNode": 4}
    return DPOJob.model_validate({"metadata": {"name": name}, "spec": least | spec})


def whole_run(folder: Path, words: str = "plain") -> WorkDir:
    """A run with everything that a page shows, and a stranger's words wherever they can be."""
    tokens: dict[str, float | None] = {
        "num_tokens": 36_000.0,
        "rewards/accuracies/le_64": 0.8,
        "length_baseline_accuracy": 0.6,
    }
    folder.mkdir(exist_ok=True)
    work = a_run(folder, 10, start=0.69, metrics=tokens)
    (folder / "job.json").write_text(
        a_job(model={"name": "org/model", "chatTemplate": words}).model_dump_json(by_alias=True)
    )
    lines = [{"step": step, "prompt": words, "policy": f"{words} {step}", "chosen": words} for step in (0, 5, 10)]
    work.samples.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "data").mkdir()
    few = Finding(code="FewTrainingPairs", severity="Warning", cause="8 pairs are few.").model_dump(mode="json")
    work.data_report.write_text(json.dumps({"findings": [few]}))
    work.data_report.with_suffix(".txt").write_text(f"8 pairs {words}", encoding="utf-8")
    found = FINDING.model_copy(update={"suggestion": words[:250]})
    (folder / "diagnosis.json").write_text(json.dumps({"version": 1, "findings": [found.model_dump(mode="json"), few]}))
    failed = termination.build_termination(
        "train", 1, 70, message=words, progress=Progress(phase="train", attempt=1, step=4)
    )
    termination.write_termination(folder / "termination-train-1-0.json", failed)
    (work.export / "merged").mkdir(parents=True)
    (work.export / "merged" / "config.json").touch()
    work.pushed.write_text(PushReport(to="s3://bucket/out", digest="0" * 64).model_dump_json())
    return work


def page_of(work: WorkDir) -> str:
    write_page(read_run(work), work)
    return (work.report / PAGE).read_text(encoding="utf-8")


def test_the_page_shows_everything_of_a_run(tmp_path: Path) -> None:
    text = Page(page_of(whole_run(tmp_path))).text
    for words in (
        "Gibberish Unhealthy, step 10", "The policy's answers repeat themselves. plain", "samples/greedy/repeated_4grams 0.85 0.25",
        "Field to change: training.learningRate", "reward margin", "Reward accuracy", "to 64 tokens 80.0%", "60.0%",
        "before plain 0", "after step 10 plain 10", "8 pairs plain", "attempt 1 after step 4 InternalError: plain",
        "GPU-hours of these steps 0.0444 on 8 GPUs", "tokens trained on 36,000", "vllm serve s3://bucket/out/merged",
        'from_pretrained("export/merged")', "storageUri: s3://bucket/out/merged", "gpusPerNode: 4",
    ):  # fmt: skip
        assert words in text, words
    assert text.count("8 pairs are few.") == 1
    assert text.index("Reward margin") < text.index("Reward accuracy")


def test_what_strangers_wrote_is_text(tmp_path: Path) -> None:
    plain, evil = Page(page_of(whole_run(tmp_path / "a"))), Page(page_of(whole_run(tmp_path / "b", EVIL)))
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags]
    assert "<script>alert(1)</script>" in evil.text
    assert "{{7*7}}" in evil.text
    assert not {"\x1b", "\u202e"} & set("".join(evil.words))


def test_the_page_makes_no_requests(tmp_path: Path) -> None:
    text = page_of(whole_run(tmp_path))
    found = Page(text)
    assert not {tag for tag, _ in found.tags} & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "base",
        "form",
        "a",
        "use",
        "image",
    }
    attributes = [(name, value or "") for _, attrs in found.tags for name, value in attrs.items()]
    assert not [
        name
        for name, _ in attributes
        if name in ("src", "href", "srcset", "action", "data", "xlink:href") or name.startswith("on")
    ]
    assert not re.search(r"url\(|@import|https?://", text)
    (policy,) = [attrs["content"] for tag, attrs in found.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in text


def test_rounds_are_a_table_and_two_pictures(tmp_path: Path) -> None:
    work = whole_run(tmp_path)
    assert "Rounds" not in Page(page_of(work)).text
    reports = [
        {"round": 1, "prompts": 90, "pairs": 81, "kl_to_initial": 0.0, "win_rate_previous": 0.71, "win_rate_error": 0.03, "win_rate_initial": 0.71},
        {"round": 2, "prompts": 90, "pairs": 64, "kl_to_initial": 2.5, "win_rate_previous": 0.62, "win_rate_initial": 0.8, "ended_share": 0.9},
        {"round": 3, "kl_to_initial": 4.25, "own_nll": 1.5},
    ]  # fmt: skip
    for report in reports:
        record.write_report(work.round(int(report["round"])), RoundReport.model_validate(report))
    page = Page(page_of(work))
    for words in ("against initial", "1 81 of 90 0.71 ± 0.03 0.71 – 2.50 – –", "2 64 of 90 0.62 0.80 – 4.25 1.50 0.90"):
        assert words in page.text, words
    pictures = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert pictures[:2] == ["Win rate of the round's policy", "KL from the initial policy, nats an answer"]


def test_a_run_with_little_has_a_page_too(tmp_path: Path) -> None:
    text = Page(page_of(a_run(tmp_path, 1, evaluations=False))).text
    assert "The rules have not looked at this run." in text
    assert "Load the model" not in text


def test_a_page_that_fails_costs_a_warning_and_not_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Told:
        said: tuple[str, str] = ("", "")

        def warning(self, code: str, text: str) -> None:
            self.said = (code, text)

    def breaks(*_: Any) -> str:
        raise ValueError("no page today")

    work, told = whole_run(tmp_path), Told()
    monkeypatch.setattr("dpo_trainer.commands.report.draw", lambda *_: None)
    monkeypatch.setattr("dpo_trainer.commands.report.page", breaks)
    phases._write_report(work, told, a_job())  # type: ignore[arg-type]
    assert told.said[0] == "NoReport"
    assert "no page today" in told.said[1]
    assert (work.report / "report.txt").is_file()
    assert (work.export / "merged" / "config.json").is_file()


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [(0, 1, [0, 0.5, 1]), (0.6, 0.7, [0.6, 0.65, 0.7]), (-3, 12, [-5, 0, 5, 10, 15]), (2, 2, [1, 1.5, 2, 2.5, 3])],
)
def test_ticks_are_round_and_span_the_values(low: float, high: float, found: list[float]) -> None:
    assert ticks(low, high) == found


def test_a_curve_stays_in_its_picture() -> None:
    points = [(float(step), (-1) ** step * step / 7) for step in range(1, 2000)]
    picture = chart(
        "t",
        [Series("a", "train", points), Series("b", "eval", [(1.0, float("nan"))])],
        [(500.0, "restart"), (9999.0, "later")],
    )
    assert picture is not None
    (curve,) = picture.series
    places = [tuple(map(float, place.split(","))) for place in curve.line.split()]
    assert len(places) == 400
    assert all(picture.left <= x <= picture.right and 0 <= y <= picture.bottom for x, y in places)
    assert [text for _, text in picture.marks] == ["restart"]
    assert chart("t", [Series("a", "train", [])]) is None
