"""Every command of README.md and docs runs, in the order of its page, at the scale of a test.

Names in the text (`features`, `CLIP_FOLDER` and so on) are made by tests.docs.scratch; what is
changed about a command, and what is not run and why, is in tests.docs.table.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outmodal.launch.cli import main
from tests.data.servers import faulty
from tests.docs.pages import ROOT, blocks, commands, pages
from tests.docs.scratch import prepare
from tests.docs.table import RULES, Rule, rule_of, words

DOCS = ROOT / "docs"
FIRST = [ROOT / "README.md", DOCS / "getting-started.md"]
METHODS = [*sorted((DOCS / "methods").glob("*.md")), DOCS / "export.md", DOCS / "report.md"]
WEB = "https://data.example.org"
OWN_TEST = [DOCS / "tutorial.md"]  # tests/docs/test_tutorial.py
GROUPS = {
    "README, getting started": FIRST,
    "methods, export, report": METHODS,
    **{p.stem: [p] for p in pages() if p not in (*FIRST, *METHODS, *OWN_TEST) and commands(p)},
}
"""Pages whose commands work in one folder, on each other's data sets and runs."""


def of(group: str, slow: bool) -> list[tuple[str, Rule]]:
    """A group's commands that are run, with their rules."""
    found = [(c, rule_of(c)) for page in GROUPS[group] for c in commands(page)]
    return [(c, rule) for c, rule in found if rule and rule.slow == slow and rule.how != "text"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the text names; read only."""
    root = tmp_path_factory.mktemp("material")
    prepare(root)
    return root


@pytest.fixture
def scratch(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the commands, with the material at hand."""
    for path in material.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture
def server(material: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The material on a server, which stands for web servers and for buckets."""
    with faulty(material) as (address, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "one")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "two")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield address


def test_every_command_has_a_rule() -> None:
    every = [(page.name, c) for page in pages() for c in commands(page)]
    assert [c for c in every if rule_of(c[1]) is None] == []
    assert len(every) > 80


def test_every_rule_is_used_and_says_why_something_is_not_run() -> None:
    used = {id(rule_of(c)) for page in pages() for c in commands(page)}
    assert [rule.start for rule in RULES if id(rule) not in used] == []
    assert [r.start for r in RULES if r.how in ("inner", "text") and not r.why] == []


def run(command: str, rule: Rule, server: str) -> None:
    arguments = [word.replace(WEB, server) for word in words(command, rule)]
    if rule.how == "shell":
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
        return
    arguments = arguments[arguments.index("outmodal") + 1 :]
    with pytest.MonkeyPatch.context() as patch:
        if arguments[0] == "submit":  # away from clusters, also where SLURM is installed
            patch.setenv("PATH", "")
        try:
            code = main(arguments)
        except SystemExit as stop:  # --help
            code = int(stop.code or 0)
    assert code == 0, " ".join(arguments)


@pytest.mark.parametrize("group", GROUPS)
def test_commands_run(group: str, scratch: Path, server: str) -> None:
    for command, rule in of(group, slow=False):
        run(command, rule, server)
    scope: dict[str, Any] = {}
    for block in [b for page in GROUPS[group] for b in blocks(page) if b.language == "python"]:
        if block.page != "docs/extending.md":  # tests/docs/test_pages.py
            exec(compile(block.text, block.page, "exec"), scope)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("group", [g for g in GROUPS if of(g, slow=True)])
def test_slow_commands_run(group: str, scratch: Path, server: str) -> None:
    for command, rule in of(group, slow=True):
        run(command, rule, server)


def test_tables_of_recordings_are_those_that_the_builder_reads(scratch: Path) -> None:
    (block,) = [b for b in blocks(ROOT / "docs" / "getting-started.md") if b.language == "csv"]
    folder = scratch / "recordings"
    folder.mkdir()
    source = scratch / "my-recordings"
    for number, row in enumerate(block.text.splitlines()[1:]):
        force, photo, _ = row.split(",")
        for name, kind in ((force, "force.npy"), (photo, "image.png")):
            if name:
                shutil.copy(source / f"{number}.{kind}", folder / name)
    (folder / "list.csv").write_text(block.text, "utf-8")
    more = ["--kinds", "force", "series", "--test_fraction", "0", "--out", "told"]
    assert main(["data", "build", "folder", "--source", "recordings/list.csv", *more]) == 0
