"""The commands and names on the project's pages."""

import re
import shlex
from pathlib import Path

from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = [
    REPOSITORY / "README.md",
    *sorted(DOCS.rglob("*.md")),
    REPOSITORY / "examples" / "README.md",
    REPOSITORY / "benchmarks" / "README.md",
    REPOSITORY / "charts" / "dpo-operator" / "README.md",
]


def spoken(page: Path) -> list[tuple[str, ...]]:
    """The commands of a page's console and shell blocks, without comments. In console blocks other lines are output."""
    found = []
    for language, block in re.findall(r"^```(console|sh|bash)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if language == "console" and not line.startswith("$ "):
                continue
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if ">" in words:  # where the output goes is the shell's part
                words = words[: words.index(">")]
            while "&&" in words:
                found.append(tuple(words[: words.index("&&")]))
                words = words[words.index("&&") + 1 :]
            found.append(tuple(words))
    return [command for command in found if command]


def named(page: Path) -> list[str]:
    """The code spans of a page's text."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


COMMANDS = sorted({command for page in PAGES for command in spoken(page)})
DPO = [command for command in COMMANDS if command[0] == "dpo"]
MAKE = [command for command in COMMANDS if command[0] == "make"]
HELM = [command for command in COMMANDS if command[0] == "helm"]
PLUGIN = [command for command in COMMANDS if command[:2] == ("kubectl", "dpo")]
KUBECTL = [command for command in COMMANDS if command[0] == "kubectl" and command not in PLUGIN]
