"""`outmodal bench data` on a handful of samples: what it answers, not how fast."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from outmodal.data.decode import decode
from outmodal.data.manifest import open_dataset
from outmodal.data.shards import read_shard
from outmodal.data.transcode import transcode
from outmodal.errors import UserError
from outmodal.launch.bench.data import Settings, bench_kinds, bench_pictures, table
from outmodal.launch.bench.data_command import run_data
from outmodal.launch.bench.data_peer import MEAN, STD, CroppedPicture, Peer
from outmodal.launch.bench.data_sets import photo_set
from outmodal.launch.bench.spending import tree_cpu
from outmodal.launch.commands.bench import run
from tests.data.tiny import make_tiny

TINY = Settings(samples=16, workers=(1,), rounds=1, batch=8, size=32)


def test_both_sides_read_every_picture_and_are_compared(tmp_path: Path) -> None:
    dataset = photo_set(tmp_path / "photos", 16)
    transcode(dataset, tmp_path / "smaller", side=64)
    smaller = open_dataset(tmp_path / "smaller")
    found = bench_pictures(dataset, "image", TINY, smaller)
    names = [row["name"] for row in found["rows"]]
    assert names == ["peer", "threads", "processes", "finished here", "threads, transcoded"]
    assert {row["samples"] for row in found["rows"]} == {16}
    assert all(row["per_cpu_s"] > 0 and row["per_wall_s"] > 0 for row in found["rows"])
    assert found["rows"][0]["per_cpu_ratio"] == 1
    assert found["speedup"] == found["rows"][1]["per_cpu_ratio"]
    assert found["speedup_transcoded"] == found["rows"][4]["per_cpu_ratio"]


def test_the_made_pictures_are_the_same_every_time_and_of_imagenets_kind(tmp_path: Path) -> None:
    one, two = (photo_set(tmp_path / name, 8) for name in ("one", "two"))
    assert one.fingerprint() == two.fingerprint()
    shard = one.shard(one.split("train").shards[0])
    ((_, _, members),) = list(read_shard(shard))
    pixels = decode(one.modality("image"), members["image.jpg"])
    assert not isinstance(pixels, str)
    assert pixels.shape == (375, 500, 3)
    assert 25_000 < len(members["image.jpg"]) < 120_000


def test_the_peer_does_what_it_stands_for(tmp_path: Path) -> None:
    dataset = photo_set(tmp_path / "photos", 10)
    peer = Peer(dataset, "image", CroppedPicture(24, (1.0, 1.0)), 4, workers=0)
    batches = list(peer.epoch())
    peer.close()
    assert [tuple(x.shape) for x in batches] == [(4, 3, 24, 24), (4, 3, 24, 24), (2, 3, 24, 24)]
    assert batches[0].dtype == torch.float32
    file = io.BytesIO()
    Image.new("RGB", (50, 40), (51, 102, 255)).save(file, "PNG")
    grey = CroppedPicture(24, (0.5, 1.0))(file.getvalue())
    wanted = (torch.tensor([0.2, 0.4, 1.0]) - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(grey[:, 5, 5], wanted)


def test_the_endless_peer_gives_full_batches_of_samples_with_picture_and_label(
    tmp_path: Path,
) -> None:
    dataset = make_tiny(tmp_path, 24, 2, ("image", "pose"), missing={"image": {0, 3, 6}})
    prepare = CroppedPicture(8, (1.0, 1.0), flip=True)
    peer = Peer(dataset, "image", prepare, 10, workers=0, labels=True, endless=True)
    steps = [step for _, step in zip(range(6), peer.labelled(), strict=False)]  # 60 of 21 samples
    peer.close()
    assert all(tuple(x.shape) == (10, 3, 8, 8) and label.shape == (10,) for x, label in steps)
    assert {n for _, label in steps for n in label.tolist()} == {0, 1, 2}


def test_other_kinds(tmp_path: Path) -> None:
    rows = bench_kinds(tmp_path, ("npy", "video"), TINY)
    assert {row["kind"] for row in rows} == {"npy", "video"}
    assert "npy, peer" in table({"kinds": rows})


def test_time_of_living_and_of_ended_children_counts() -> None:
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = tree_cpu()
    with subprocess.Popen(
        [sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alive = tree_cpu() - before
        child.communicate(b"\n")
    ended = tree_cpu() - before
    assert alive >= 0.25
    assert ended >= 0.25
    assert ended - alive < 5
    own = time.process_time()
    assert tree_cpu() >= own


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--kinds", "imag"], "unknown kind 'imag'; did you mean 'image'"),
        (["--workers", "0"], "--workers counts 1 to 8"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--samples", "10"], "--samples 10 is less than a batch"),
        (["--scale", "0.9", "0.1"], "--scale is two shares"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_measured_is_refused(argv: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        run_data(argv)


def test_the_command_answers_with_speedups() -> None:
    few = ["--samples", "16", "--batch", "8", "--rounds", "1", "--workers", "1", "--size", "32"]
    out = run(["data", *few, "--transcoded"])
    assert out.data["speedup"] > 0
    assert out.data["speedup_transcoded"] > 0
    assert "scikit-learn" in out.data["pictures_from"]
    assert "speedup per CPU-second" in out.text
    assert "data " in run([]).text
