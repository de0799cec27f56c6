"""Data sets at addresses: real servers, and everything that a network does wrong."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from outmodal.data import store_remote
from outmodal.data.arrays import SeriesInput, VectorInput
from outmodal.data.batch import StreamSpec
from outmodal.data.labels import read_labels
from outmodal.data.manifest import Dataset, open_dataset
from outmodal.data.shard_index import _scan
from outmodal.data.shards import ShardDamage, read_shard
from outmodal.data.store import StoreError
from outmodal.data.store_config import CHOSEN, RemoteConfig
from outmodal.data.store_remote import RemoteShard
from outmodal.data.stream import Loader, StreamConfig
from outmodal.errors import UserError
from tests.data.servers import Faults, faulty, held_port, nginx, s3_server
from tests.data.tiny import make_tiny

FAST = RemoteConfig(retries=3, pause=0.01, timeout=120, connect_timeout=120)
KEYS = {
    "AWS_ACCESS_KEY_ID": "one",
    "AWS_SECRET_ACCESS_KEY": "two",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No label cache, no earlier index, no earlier tag, and no account of the host."""
    monkeypatch.setenv("OUTMODAL_CACHE", str(tmp_path / "derived"))
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    _scan.cache_clear()
    store_remote._tags.clear()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("served") / "set", 40, 4, ("pose", "force"), test=8)


@pytest.fixture(scope="module")
def web(local: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with nginx(local.root.parent, tmp_path_factory.mktemp("web") / "nginx") as address:
        yield address


@pytest.fixture(scope="module")
def bucket(local: Dataset) -> Iterator[str]:
    """The endpoint of a server whose bucket `shelf` holds the data set."""
    import botocore.session

    with s3_server() as endpoint:
        client = botocore.session.get_session().create_client(
            "s3", region_name="us-east-1", endpoint_url=endpoint,
            aws_access_key_id="one", aws_secret_access_key="two",
        )  # fmt: skip
        client.create_bucket(Bucket="shelf")
        for path in local.root.iterdir():
            client.put_object(Bucket="shelf", Key=f"a/set/{path.name}", Body=path.read_bytes())
        yield endpoint


@pytest.fixture(params=["http", "s3"])
def server(
    request: pytest.FixtureRequest, local: Dataset, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Faults]]:
    """A server with faults, as a web server and as the one of a bucket named `set`."""
    with faulty(local.root.parent) as (address, faults):
        if request.param == "s3":
            monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        yield ("s3://set" if request.param == "s3" else f"{address}/set"), faults


def samples(dataset: Dataset, **asked: Any) -> list[Any]:
    shards = dataset.split("train").shards
    return [item for info in shards for item in read_shard(dataset.shard(info), **asked)]


def remote(address: str, config: RemoteConfig = FAST) -> Dataset:
    return open_dataset(address, remote=config)


def test_http_gives_what_the_folder_gives(web: str, local: Dataset) -> None:
    dataset = remote(f"{web}/set/")
    assert dataset.manifest == local.manifest
    assert (dataset.where, samples(dataset)) == (f"{web}/set", samples(local))
    chosen = {"select": [1, 2, 7]}
    assert samples(dataset, **chosen) == samples(local, **chosen)
    assert (read_labels(dataset, "train") == read_labels(local, "train")).all()
    with pytest.raises(UserError, match="another machine"):
        _ = dataset.root
    assert pickle.loads(pickle.dumps(dataset)) == dataset  # noqa: S301


def test_s3_gives_what_the_folder_gives(
    bucket: str, local: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket)
    dataset = remote("s3://shelf/a/set")
    assert samples(dataset) == samples(local)
    assert samples(dataset, select=[3]) == samples(local, select=[3])
    assert (read_labels(dataset, "train") == read_labels(local, "train")).all()
    with pytest.raises(UserError, match=r"no data set at s3://shelf/b: .*dataset\.json"):
        remote("s3://shelf/b")
    with pytest.raises(UserError, match="no data set at s3://other"):
        remote("s3://other/set")


def test_s3_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    config = FAST.model_copy(update={"retries": 1})
    with held_port() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(StoreError, match=r"tried 2 times.*data\.remote\.retries"):
            remote("s3://shelf/a/set", config)


@pytest.mark.parametrize("kind", ["", "file://"])
def test_a_folder_as_an_address(local: Dataset, kind: str) -> None:
    dataset = open_dataset(f"{kind}{local.root}")
    assert dataset == local
    assert samples(dataset) == samples(local)


@pytest.mark.parametrize(
    "asked",
    ["http", "s3", "cached http"],
)
def test_an_epoch_is_that_of_the_folder_bit_for_bit(
    asked: str, web: str, bucket: str, local: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket)
    config = FAST.model_copy(update={"cache": str(tmp_path / "c") if "cached" in asked else ""})
    dataset = remote("s3://shelf/a/set" if asked == "s3" else f"{web}/set", config)
    spec = StreamSpec("pairs", "train", ("pose", "force"), 8)
    stream = StreamConfig(batch=8, window=8, workers=2 if asked == "http" else 0)
    with _loader(local, stream) as here, _loader(dataset, stream) as there:
        count = 0
        for a, b in zip(_epoch(here, spec), _epoch(there, spec), strict=True):
            one, other = a["pairs"], b["pairs"]
            assert torch.equal(one.index, other.index)
            assert torch.equal(one.label, other.label)
            for name in spec.modalities:
                assert torch.equal(one.x[name], other.x[name])
            count += 1
    assert count == 5


def _loader(dataset: Dataset, cfg: StreamConfig) -> Loader:
    force = SeriesInput(length=16, channels=3, mean=(0.0,), std=(1.0,))
    inputs = {
        "force": force.build(dataset, "force", None),
        "pose": VectorInput(dim=7).build(dataset, "pose", None),
    }
    return Loader(dataset, inputs, cfg)


def _epoch(loader: Loader, spec: StreamSpec) -> Any:
    return loader.open_epoch([spec], seed=3, epoch=1, start_step=0, steps=5)


def test_a_cut_transfer_goes_on_at_the_byte(server: Any, local: Dataset) -> None:
    address, faults = server
    dataset = remote(address)
    faults.cut, faults.cuts = 1500, 3
    faults.asked.clear()
    info = dataset.split("train").shards[0]
    assert list(read_shard(dataset.shard(info))) == list(read_shard(local.shard(info)))
    begins = [int(str(span)[6:].partition("-")[0]) for span in faults.shards()]
    assert begins == [0, 1500, 3000, 4500]


def test_a_transfer_that_is_always_cut_ends(server: Any) -> None:
    address, faults = server
    dataset = remote(address)
    faults.cut = 0
    with pytest.raises(StoreError, match=r"train-000000\.tar.*tried 4 times"):
        samples(dataset)


def test_503_twice_passes_and_503_for_ever_does_not(server: Any, local: Dataset) -> None:
    address, faults = server
    dataset = remote(address)
    faults.statuses = 2
    assert samples(dataset) == samples(local)
    faults.statuses = -1
    with pytest.raises(StoreError, match=r"503.*tried 4 times"):
        samples(dataset)


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (404, ShardDamage, "404"),
        (403, StoreError, "(403|refuses).*(NETRC|AWS_PROFILE)"),
        (418, StoreError, "418"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(
    server: Any, status: int, error: type[Exception], words: str
) -> None:
    address, faults = server
    dataset = remote(address)
    faults.status, faults.statuses = status, -1
    faults.asked.clear()
    with pytest.raises(error, match=words):
        samples(dataset)
    assert len(faults.shards()) == 1


def test_a_missing_shard_and_a_missing_set_are_named(server: Any) -> None:
    address, faults = server
    faults.status, faults.statuses = 404, -1
    with pytest.raises(UserError, match=r"train-000000\.tar: .*404.* lists it"):
        remote(address)
    with pytest.raises(UserError, match=r"no data set at .*/none: .*404"):
        remote(f"{address}/none")


def test_a_refused_connection(local: Dataset) -> None:
    config = FAST.model_copy(update={"retries": 1})
    with held_port() as port:
        with pytest.raises(StoreError, match=r"(?i)connect.*tried 2 times"):
            remote(f"http://127.0.0.1:{port}/set", config)


def test_a_server_that_hangs(server: Any) -> None:
    address, faults = server
    dataset = remote(address)  # with time enough: only what follows must not come in time
    hasty = FAST.model_copy(update={"retries": 1, "timeout": 0.3})
    place = dataset.shard(dataset.split("train").shards[0])
    assert isinstance(place, RemoteShard)
    faults.pause = 600.0
    with pytest.raises(StoreError, match=r"no answer in time.*data\.remote\.timeout"):
        list(read_shard(replace(place, config=hasty)))


def test_redirects(web: str, local: Dataset) -> None:
    assert samples(remote(f"{web}/moved/set")) == samples(local)
    with pytest.raises(StoreError, match="redirects"):
        remote(f"{web}/circle/set")
    with pytest.raises(StoreError, match="403"):
        remote(f"{web}/secret/set")


def test_a_server_without_ranges(server: Any, local: Dataset, tmp_path: Path) -> None:
    address, faults = server
    faults.ranges = False
    dataset = remote(address)
    with pytest.raises(StoreError, match=r"whole files only.*data\.remote\.cache"):
        samples(dataset, select=[1])
    config = FAST.model_copy(update={"cache": str(tmp_path / "cache")})
    dataset = remote(address, config)
    assert samples(dataset) == samples(local)


def test_content_that_changes_between_requests(server: Any, local: Dataset) -> None:
    address, faults = server
    dataset = remote(address)
    place = dataset.shard(dataset.split("train").shards[0])
    assert list(read_shard(place, stop=2))
    faults.tag = '"two"'
    with pytest.raises(ShardDamage, match=r"train-000000\.tar: changed while it was read.*two"):
        list(read_shard(place, start=2))


def test_content_that_changes_without_a_word(server: Any, local: Dataset) -> None:
    """Same size, same tag: the headers differ from those of the index."""
    address, faults = server
    dataset = remote(address)
    path = local.root / "train-000000.tar"
    faults.replace["/set/train-000000.tar"] = path.read_bytes().replace(b"train-0", b"other-0")
    with pytest.raises(ShardDamage, match="a header of 'train-00000' differs"):
        samples(dataset)


def test_a_shard_of_another_size(server: Any, local: Dataset) -> None:
    address, faults = server
    dataset = remote(address)
    path = local.root / "train-000000.tar"
    faults.replace["/set/train-000000.tar"] = path.read_bytes()[:-2048]
    with pytest.raises(ShardDamage, match="the manifest says"):
        samples(dataset)
    with pytest.raises(UserError, match=r"train-000000\.tar has \d+ bytes, but .* says"):
        remote(address)


def test_an_index_spares_the_pass_over_the_headers(server: Any, local: Dataset) -> None:
    address, faults = server
    dataset = remote(address)
    faults.asked.clear()
    read_labels(dataset, "train")
    assert {path for path, _ in faults.asked} == {
        f"/set/{info.file}.index" for info in dataset.split("train").shards
    }


def test_without_an_index_the_headers_are_read(
    server: Any, local: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    address, faults = server
    dataset = remote(address)
    faults.only, faults.status, faults.statuses = ".index", 404, -1
    with caplog.at_level(logging.INFO):
        assert samples(dataset) == samples(local)
    assert (read_labels(dataset, "train") == read_labels(local, "train")).all()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://me:hidden@host/set", "must not hold a user"),
        ("https://hidden@host/set", "must not hold a user"),
        ("https://host/set?token=hidden", "must not hold a user"),
        ("s3://key:hidden@bucket/set", "must not hold a user"),
        ("htp://host/set", "did you mean 'http'"),
        ("gs://bucket/set", "no kind of address"),
        ("s3:///set", "names no bucket"),
        ("file://host/set", "another machine"),
        ("pipe:cat /tmp/{}", "--allow-pipe"),
    ],
)
def test_addresses_that_are_refused(address: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        open_dataset(address)
    assert "hidden" not in str(caught.value)


def test_a_program_gives_shards_where_it_is_allowed(
    local: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CHOSEN, '{"allow_pipe": true}')
    config = RemoteConfig(cache=str(tmp_path / "cache"), pause=0.01, retries=1)
    dataset = remote(f"pipe:cat '{local.root}/{{}}'", config)
    assert samples(dataset) == samples(local)
    assert dataset.shard(dataset.split("train").shards[0]).name == "train-000000.tar"
    with pytest.raises(StoreError, match="the program ended with 1"):
        remote(f"pipe:cat {tmp_path}/{{}}", config)
    with pytest.raises(UserError, match="for a file's name"):
        remote("pipe:cat /tmp/a", config)
    with pytest.raises(UserError, match="no program 'nonesuch'"):
        remote("pipe:nonesuch {}", config)
    with pytest.raises(StoreError, match="ended with"):  # nothing is expanded, no second program
        remote(f"pipe:cat {{}} ; touch {tmp_path}/made", config)
    assert not (tmp_path / "made").exists()


def _count(dataset: Dataset, answers: Any) -> None:
    answers.put(len(samples(dataset)))


def test_a_forked_process_opens_its_own_connections(web: str, local: Dataset) -> None:
    dataset = remote(f"{web}/set")
    assert len(samples(dataset)) == 40
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=_count, args=(dataset, answers)) for _ in range(2)]
    for child in children:
        child.start()
    assert [answers.get(timeout=200) for _ in children] == [40, 40]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert len(samples(dataset)) == 40


def remember(answers: Any) -> None:
    store_remote.remember_tag("http://host/a.tar", "one")
    answers.put(store_remote.known_tag("http://host/a.tar"))


def test_a_process_that_is_forked_while_a_thread_notes_a_tag_is_not_stuck() -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    with store_remote._tags_lock:  # as a thread of the parent that has no turn now
        child = context.Process(target=remember, args=(answers,))
        child.start()
    try:
        assert answers.get(timeout=100) == "one"
    finally:
        child.kill()
        child.join()


def test_missing_packages_have_a_remedy(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['aiohttp'] = sys.modules['s3fs'] = None\n"
        "from outmodal.data.manifest import open_dataset\n"
        "from outmodal.errors import UserError\n"
        "for address in ('http://127.0.0.1:9/set', 's3://bucket/set'):\n"
        "    try:\n"
        "        open_dataset(address)\n"
        "    except UserError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.count("pip install 'outmodal[remote]'") == 2
