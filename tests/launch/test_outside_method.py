"""`--method.path`: a method of the user's own, from the command line to an export, and never a line
of anybody's code that the command line did not allow."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from outmodal.launch.cli import main
from outmodal.launch.slurm import submitting
from outmodal.train.methods.outside import digest
from tests.data.tiny import make_tiny
from tests.docs.pages import ROOT, blocks

RECIPE = """
data: {{path: {data}, batch: 8, streams: 4}}
learners:
  - {{name: mlp, modality: pose, input: {{name: vector, dim: 7}}}}
method: {{name: erm, unknown: pose, label_fraction: 0.5}}
optim: {{name: adam, lr: 1.0e-2}}
engine: {{epochs: 2, device: cpu, log_every: 1, threads: 1, checkpoint_every: 4, keep: 9}}
"""
CONFIG = """
from __future__ import annotations
from typing import Literal
from outmodal.train.methods import MethodSettings
from outmodal.train.methods.erm import Erm, ErmConfig

class MyConfig(ErmConfig):
    name: Literal["mine"] = "mine"
"""

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a recipe, and the method of docs/extending.md."""
    root = tmp_path_factory.mktemp("outside")
    make_tiny(root / "data", samples=32, shards=4, modalities=("pose",))
    (root / "recipe.yaml").write_text(RECIPE.format(data=root / "data"), "utf-8")
    (example,) = [b for b in blocks(ROOT / "docs" / "extending.md") if b.file == "my_method.py"]
    (root / "my_method.py").write_text(example.text, "utf-8")
    return root


def command(place: Path, out: Path, *more: str, code: str = "") -> list[str]:
    file = code or str(place / "my_method.py")
    return ["train", str(place / "recipe.yaml"), "--method.path", file, "--out", str(out), *more]


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A run of two epochs of it; other tests only read it, or copy it."""
    out = place / "run"
    assert main(command(place, out, "--method.gamma", "3")) == 0
    return out


def marked(folder: Path) -> tuple[Path, Path]:
    """A method's file, and the file that it leaves when it is executed."""
    file, mark = folder / "marked.py", folder / "executed"
    file.write_text(f"{CONFIG}\nopen({str(mark)!r}, 'w').close()\n", "utf-8")
    return file, mark


def said(capsys: Capture) -> str:
    return capsys.readouterr().err


def logged(run: Path, split: str) -> list[object]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    times = ("seconds", "per_second", "/s", "time", "gpu")
    return [
        {k: v for k, v in line["values"].items() if not any(t in k for t in times)}
        for line in lines
        if line["split"] == split
    ]


# --- training -------------------------------------------------------------------------------------


def test_the_run_says_which_code_it_was(run: Path, place: Path) -> None:
    code = (place / "my_method.py").read_bytes()
    method = yaml.safe_load((run / "config.yaml").read_text("utf-8"))["method"]
    assert (method["name"], method["gamma"], method["unknown"]) == ("focal", 3.0, "pose")
    assert (method["path"], method["sha256"]) == (str(place / "my_method.py"), digest(code))
    assert (run / "method.py").read_bytes() == code
    assert "focal" in json.dumps(logged(run, "train")[0])


@pytest.mark.long
def test_a_process_of_its_own_trains_it_alike(run: Path, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    words = command(place, out, "--method.gamma", "3", code="my_method.py")
    done = subprocess.run(
        [sys.executable, "-m", "outmodal", *words], cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert logged(out, "train") == logged(run, "train")
    assert list(place.glob("__pycache__")) == []


@pytest.mark.long
@pytest.mark.timeout(900)  # four processes that import everything
def test_two_processes_train_and_evaluate_it_alike(run: Path, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    assert main(command(place, out, "--method.gamma", "3", "--nproc", "2")) == 0
    ours, theirs = logged(out, "eval"), logged(run, "eval")
    assert json.dumps(ours[-1]) == json.dumps(theirs[-1])
    assert main(["eval", str(out), "--allow-code", "--nproc", "2", "--draws", "9"]) == 0
    assert (out / "eval" / "classify-test.json").is_file()


def test_going_on_gives_what_was_to_come(run: Path, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (out / "result.json").unlink()
    for checkpoint in sorted((out / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(checkpoint)
    first = next((out / "checkpoints").glob("step-*")).name
    (out / "checkpoints" / "latest").write_text(f"{first}\n", "utf-8")
    assert main(command(place, out, "--method.gamma", "3")) == 0
    assert (out / "result.json").read_text() == (run / "result.json").read_text()


def test_a_run_goes_on_with_its_own_code_only(
    run: Path, place: Path, tmp_path: Path, capsys: Capture
) -> None:
    changed = tmp_path / "my_method.py"
    changed.write_text((place / "my_method.py").read_text("utf-8") + "\n# new\n", "utf-8")
    out = tmp_path / "run"
    shutil.copytree(run, out)
    assert main(command(place, out, "--method.gamma", "3", code=str(changed))) == 2
    assert "code of method.path has changed" in (text := said(capsys))
    assert "method.py in the run's folder" in text
    assert "--out" in text
    kept = str(out / "method.py")
    assert main(command(place, out, "--method.gamma", "3", code=kept)) == 0


def test_keys_are_checked_and_shown(place: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(command(place, tmp_path / "run", "--method.gama", "2")) == 2
    assert "unknown key 'method.gama'; did you mean 'method.gamma'?" in said(capsys)
    assert main(command(place, tmp_path / "run", "--method.gamma", "0.5")) == 2
    assert "gamma" in said(capsys)
    with pytest.raises(SystemExit) as stop:
        main(command(place, tmp_path / "run", "--help"))
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--method.gamma" in shown
    assert "How far it looks away" in shown


def test_a_recipe_of_its_own(place: Path, tmp_path: Path, capsys: Capture) -> None:
    """With what `base` leaves, mistakes by file and line, and without a name."""
    recipe = tmp_path / "mine.yaml"
    start = f"base: {place}/recipe.yaml\nmethod:\n  name: focal\n  path: {place}/my_method.py\n"
    recipe.write_text(f"{start}  unknown: pose\n  gama: 3\n", "utf-8")
    words = ["train", str(recipe), "--allow-code", "--dry_run"]
    assert main(words) == 2
    assert "mine.yaml:6: method.gama: unknown key; did you mean 'gamma'?" in said(capsys)
    recipe.write_text(f"{start}  unknown: pose\n  gamma: 3\n", "utf-8")
    assert main(words) == 0
    assert main([*words, "--method.name", "erm"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out.split("\nout:")[-1].join(["out:", ""]))
    assert shown["method"]["name"] == "erm"
    assert "path" not in shown["method"]


# --- other commands -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["allowed", "named", "copied"])
def test_runs_are_evaluated(run: Path, place: Path, tmp_path: Path, how: str) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    given = {
        "allowed": ["--allow-code"],
        "named": ["--method.path", str(place / "my_method.py")],
        "copied": [f"--method.path={out / 'method.py'}"],
    }[how]
    assert main(["eval", str(out), "--draws", "9", *given]) == 0
    assert (out / "eval" / "classify-test.json").is_file()


def test_an_export_says_what_repeats_it(run: Path, place: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--to", str(tmp_path / "e"), "--allow-code"]) == 0
    assert "--method.path my_method.py" in (tmp_path / "e" / "README.md").read_text("utf-8")


def test_reports_leave_out_what_they_may_not_execute(
    run: Path, tmp_path: Path, capfd: Capture
) -> None:
    page = ["--out", str(tmp_path / "report.html"), "--json"]
    assert main(["report", str(run), *page]) == 0
    (why,) = json.loads(capfd.readouterr().out)["not_evaluated"].values()
    assert "--allow-code" in why
    assert main(["report", str(run), *page, "--allow-code"]) == 0
    assert json.loads(capfd.readouterr().out)["not_evaluated"] == {}


def test_plans_and_checks(place: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe, code = str(place / "recipe.yaml"), str(place / "my_method.py")
    assert main(["plan", recipe, "--method.path", code, "--gpu", "cpu"]) == 0
    mine = tmp_path / "mine.yaml"
    section = f"{{name: focal, path: {code}, unknown: pose}}"
    mine.write_text(f"base: {recipe}\nmethod: {section}\n", "utf-8")
    from outmodal.launch.doctor.storage import recipe_lines

    (line,) = recipe_lines(str(mine))
    assert line.status == "failure"
    assert "--allow-code" in line.remedy


def test_a_job_keeps_the_code_that_it_was_submitted_with(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(submitting, "_check_cluster", lambda job, profile: None)
    monkeypatch.setattr(submitting, "ask", lambda *words: "7")
    file = tmp_path / "my_method.py"
    shutil.copy(place / "my_method.py", file)
    out = tmp_path / "run"
    words = command(place, out, code=str(file))
    assert main(["submit", *words[1:]]) == 0
    base = out / "slurm" / "001"
    assert f"--method.path {base}.py" in (base.with_suffix(".sbatch")).read_text("utf-8")
    file.write_text("raise SystemExit('edited since')", "utf-8")
    job = ["train", f"{base}.yaml", "--out", str(out), "--method.path", f"{base}.py"]
    assert main([*job, "--dry_run"]) == 0
    base.with_suffix(".py").write_text(file.read_text("utf-8"), "utf-8")
    capsys.readouterr()
    assert main([*job, "--dry_run"]) == 2
    assert "has changed since this configuration was written" in said(capsys)


# --- what is not executed -------------------------------------------------------------------------


def test_opening_a_run_executes_nothing(
    run: Path, place: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Not the recorded file, not the copy, not what was exchanged for it."""
    file, mark = marked(tmp_path)
    theirs = tmp_path / "theirs"
    shutil.copytree(run, theirs)
    config = yaml.safe_load((theirs / "config.yaml").read_text("utf-8"))
    config["method"] |= {"path": str(file), "sha256": digest(file.read_bytes())}
    (theirs / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    shutil.copy(file, theirs / "method.py")
    for words in (["eval", str(theirs)], ["export", str(theirs), "--to", str(tmp_path / "e")]):
        assert main(words) == 2
        assert "--allow-code" in (text := said(capsys))
        assert str(theirs / "method.py") in text
    assert main(["report", str(theirs)]) == 0
    assert main(["eval", str(theirs), "--method.path", str(place / "my_method.py")]) == 2
    assert "is not that code" in said(capsys)
    (theirs / "method.py").write_text(f"{file.read_text('utf-8')}#", "utf-8")
    assert main(["eval", str(theirs), "--allow-code"]) == 2
    assert not mark.exists()


def test_a_recipe_alone_executes_nothing(place: Path, tmp_path: Path, capsys: Capture) -> None:
    file, mark = marked(tmp_path)
    recipe = tmp_path / "theirs.yaml"
    recipe.write_text(f"base: {place}/recipe.yaml\nmethod: {{name: mine, path: {file}}}\n", "utf-8")
    for words in (["train", str(recipe)], ["plan", str(recipe)], ["submit", str(recipe)]):
        assert main(words) == 2
        assert "theirs.yaml:2: method.path names code" in (text := said(capsys))
        assert "--allow-code" in text
    assert not mark.exists()
    assert main(["train", str(recipe), "--allow-code", "--method.unknown", "pose"]) == 2
    assert mark.exists()  # it lacks `unknown`, which its own code says


# --- mistakes -------------------------------------------------------------------------------------

MISTAKES = {
    "nothing": ("x = 1", "defines no configuration"),
    "syntax": ("def f(:", ":1: invalid syntax"),
    "import": ("\nimport no_such_thing", ":2: ModuleNotFoundError: No module named 'no_such"),
    "raises": ("def f():\n  1 / 0\nf()", ":2: ZeroDivisionError"),
    "exits": ("import sys\nsys.exit(3)", ":2: SystemExit: 3"),
    "two": (
        f"{CONFIG}\nclass Other(MyConfig):\n    name: Literal['other'] = 'other'",
        "defines 2 methods, MyConfig, Other",
    ),
    "taken": (CONFIG.replace('"mine"', '"cox"'), "'cox' is a method of outmodal"),
    "no name": ("from outmodal.train.methods import *\nclass A(ErmConfig): pass", "no name of its"),
    "open name": (CONFIG.replace('Literal["mine"]', "str"), "one text that never changes"),
    "no build": (CONFIG.replace("MyConfig(ErmConfig)", "MyConfig(MethodSettings)"), "lacks build"),
    "own path": (f"{CONFIG}    path: str = ''", "has the key `path`"),
    "unknown type": (f"{CONFIG}    x: Nowhere = 1", "cannot be understood"),
    "bytes": ("\0", "mend it"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_file(name: str, place: Path, tmp_path: Path, capsys: Capture) -> None:
    text, expected = MISTAKES[name]
    file = tmp_path / "wrong.py"
    file.write_text(text, "utf-8")
    for _ in range(2):  # no half of it is left behind
        assert main(command(place, tmp_path / "run", code=str(file))) == 2
        assert expected in (told := said(capsys))
        assert str(file) in told
        assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_mistake_about_the_file(place: Path, tmp_path: Path, capsys: Capture) -> None:
    for path, expected in (
        (str(tmp_path / "gone.py"), "there is no such file"),
        (str(place / "recipe.yaml"), "give a Python file"),
    ):
        assert main(command(place, tmp_path / "run", code=path)) == 2
        assert expected in said(capsys)
    assert main(command(place, tmp_path / "run", "--method.name", "focl")) == 2
    assert "defines method 'focal', not 'focl'" in said(capsys)
    assert main(["train", str(place / "recipe.yaml"), "--method.path"]) == 2
    assert "--method.path wants a value" in said(capsys)
