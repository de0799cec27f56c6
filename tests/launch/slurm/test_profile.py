"""A site's profile: read, refused, drafted."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from outmodal.errors import UserError
from outmodal.launch.slurm import draft
from outmodal.launch.slurm.cluster import Node, Partition
from outmodal.launch.slurm.draft import draft_profile, write_draft_profile
from outmodal.launch.slurm.profile import VARIABLE, Profile, load_profile

PARTITIONS = {
    "cpu": Partition("cpu", True, True, None, None, (Node("c1", 128, 0),)),
    "gpu": Partition("gpu", False, True, 4, 45000, (Node("g1", 64, 8), Node("g2", 96, 8))),
}


@pytest.fixture(autouse=True)
def _no_profile_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_none_is_needed() -> None:
    assert load_profile() == Profile()


def test_the_default_place_the_variable_and_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home/.config/outmodal/slurm.yaml"
    home.parent.mkdir(parents=True)
    home.write_text("partition: of-home\n")
    assert load_profile().partition == "of-home"
    other = tmp_path / "site.yaml"
    other.write_text("partition: of-variable\ncontainer: [apptainer, exec, x.sif]\n")
    monkeypatch.setenv(VARIABLE, str(other))
    assert load_profile().partition == "of-variable"
    assert load_profile().container == ("apptainer", "exec", "x.sif")
    assert load_profile(home).partition == "of-home"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partitoin: x\n", [":1", "did you mean 'partition'"]),
        ("grace: 300\nsignal: both\n", [":2", "signal", "'step' or 'batch'"]),
        ("environment: {A B: c}\n", ["environment", "A B"]),
        ("time: 12:00:00\n", [":1", "time", "quotes"]),
        ("modules: [a\n", ["mend the YAML"]),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "slurm.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        load_profile(path)
    for word in words:
        assert word in str(refused.value)


def test_a_named_profile_has_to_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--profile"):
        load_profile(tmp_path / "none.yaml")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=VARIABLE):
        load_profile()


def test_the_draft_is_a_profile_of_the_partition_with_the_most_gpus() -> None:
    drafted = Profile.model_validate(yaml.safe_load(draft_profile(PARTITIONS)))
    assert drafted.partition == "gpu"
    assert (drafted.gpus_per_node, drafted.cpus_per_task) == (8, 8)
    assert drafted.time == "0-12:30:00"


def test_a_draft_never_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "read_partitions", lambda: PARTITIONS)
    path = write_draft_profile()
    assert path == tmp_path / "home/.config/outmodal/slurm.yaml"
    assert load_profile().partition == "gpu"
    with pytest.raises(UserError, match="already"):
        write_draft_profile()
    with pytest.raises(UserError, match="cannot write"):
        write_draft_profile(Path("/proc/none/slurm.yaml"))
