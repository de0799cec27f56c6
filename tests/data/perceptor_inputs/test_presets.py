"""The table of presets, and the way from a data set's files to tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outmodal.data.perceptor_inputs import PRESETS, perceptor_input
from outmodal.data.plan import Picks
from outmodal.data.samples import Column, Reader
from outmodal.data.skips import SkipLedger
from outmodal.errors import UserError

from ..tiny import RATE, make_tiny

CASES = [(family, kind) for family, kinds in PRESETS.items() for kind in kinds]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_stand_in_has_the_inputs_shape(family: str, kind: str) -> None:
    config = perceptor_input(family, kind)  # type: ignore[arg-type]
    made = config.build(None, kind, None)
    assert made.zeros().shape == made.shape == config.shape
    assert made.zeros().dtype == made.dtype
    assert type(config).model_validate_json(config.model_dump_json()) == config


def test_names_are_settled_before_anything_is_read() -> None:
    assert perceptor_input("imagebind", "vision") == perceptor_input("imagebind", "image")
    assert perceptor_input("languagebind", "language") == perceptor_input("languagebind", "text")
    with pytest.raises(UserError, match="did you mean 'imagebind'"):
        perceptor_input("imagebinds", "image")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="languagebind has no input for 'imu'"):
        perceptor_input("languagebind", "imu")
    with pytest.raises(UserError, match="did you mean 'thermal'"):
        perceptor_input("imagebind", "termal")
    with pytest.raises(UserError, match="languagebind input for audio: mels"):
        perceptor_input("languagebind", "audio", mels=0)
    with pytest.raises(UserError, match="melz"):
        perceptor_input("languagebind", "audio", melz=3)


def test_another_kind_of_modality_is_refused(tmp_path: Path) -> None:
    dataset = make_tiny(tmp_path, samples=4, shards=1)
    with pytest.raises(UserError, match="reads audio, but modality 'image'"):
        perceptor_input("imagebind", "audio").build(dataset, "image", None)


def test_a_data_sets_files_are_read_as_the_inputs_read_them(tmp_path: Path) -> None:
    """The stream gives the file to the transform: a sound is not resampled twice."""
    dataset = make_tiny(tmp_path, samples=4, shards=1)
    made = perceptor_input("languagebind", "audio", mels=8, frames=30).build(
        dataset, "speech", None
    )
    seen: list[tuple[int | None, str]] = []

    def from_bytes(spec: object, data: bytes, key: str, draw: object = None) -> torch.Tensor:
        seen.append((getattr(spec, "sample_rate", None), key))
        return made.zeros()

    made.from_bytes = from_bytes  # type: ignore[method-assign]
    reader = Reader(dataset, {"speech": made}, 0, SkipLedger(0, "x"))
    read_all(reader)
    assert {rate for rate, _ in seen} == {RATE}
    assert len(seen) == 4


def read_all(reader: Reader) -> None:
    split = next(iter(reader.dataset.manifest.splits))
    count = reader.dataset.split(split).samples
    zeros = torch.zeros(count, dtype=torch.int64).numpy()
    numbers = torch.arange(count).numpy()
    block = reader.open(split, [Column("speech", "speech")], Picks(numbers, zeros, numbers))
    for j in range(count):
        block.sample(j)
