"""Make the pictures of the README from a real run: `make pictures`.

The quickstart is run again from its start. Its report is copied, and what it said is drawn as an SVG; where lines are left
out there is a line with an ellipsis.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
RUN = REPOSITORY / "runs" / "quickstart"
COMMAND = "dpo run examples/quickstart/dpojob.yaml"
WIDTH = 96
# Lines that are shown. The last one is the end of the result's table.
SHOWN = re.compile(
    r"(prepare|train|export):$|prepared|Warning: Dataset|reference log-probs of the training|step (1|2|10|20|30|40)/|eval at|"
    r"checkpoint of|Trained|comparing|exported|[┏┃┡│└]|Result|training time:"
)
LAST = "training time:"
# Shorter groups of lines that are left out get no ellipsis.
LONG = 5
STYLES = (
    (re.compile(r"(prepare|train|export):$"), "bold cyan"),
    (re.compile(r"Warning:"), "yellow"),
    (re.compile(r"eval at|checkpoint of"), "green"),
)
# No font is fetched from elsewhere: a README shows pictures without scripts and without a network.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px;
  line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def run() -> str:
    """Train the quickstart's model and align it; what the run said."""
    subprocess.run([sys.executable, "examples/quickstart/make_model.py"], cwd=REPOSITORY, check=True)
    command = [sys.executable, "-c", "from dpo_operator.cli.main import app; app()", *COMMAND.split()[1:], "--fresh"]
    environment = {**os.environ, "COLUMNS": str(WIDTH), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout.replace(f"{REPOSITORY}/", "")


def shown(said: str) -> list[str]:
    """The lines of the picture, an ellipsis for each long group that is left out."""
    lines: list[str] = []
    left_out = 0
    for line in said.splitlines():
        if not SHOWN.match(line):
            left_out += 1
            continue
        if left_out >= LONG:
            lines.append("…")
        left_out = 0
        lines.append(line.rstrip())
        if line.startswith(LAST):
            break
    return lines


def draw(lines: list[str], path: Path) -> None:
    """Write what a terminal shows as an SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    console.print(Text(f"$ {COMMAND}", style="bold"))
    for line in lines:
        style = next((style for pattern, style in STYLES if pattern.match(line)), "dim" if line == "…" else "")
        console.print(Text(line, style=style), overflow="crop", no_wrap=True)
    path.write_text(console.export_svg(title="A job, watched", code_format=SVG, unique_id="run"), encoding="utf-8")


if __name__ == "__main__":
    draw(shown(run()), HERE / "run.svg")
    shutil.copyfile(RUN / "report" / "report.png", HERE / "report.png")
