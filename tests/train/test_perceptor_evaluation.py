"""Perceptors alone: zero-shot classification and retrieval on a data set, and clear refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from outmodal.data.decode import decode
from outmodal.data.manifest import Dataset
from outmodal.data.shards import read_shard
from outmodal.errors import UserError
from outmodal.launch.cli import main
from outmodal.models.perceptors import (
    ExportedPerceptor,
    HubPerceptor,
    ImageBindPerceptor,
    LanguageBindPerceptor,
)
from outmodal.train.perceptor_evaluation import classify, retrieve, split_features
from tests.data.tiny import make_tiny
from tests.models import hub_models
from tests.models.encoders import export
from tests.models.golden_towers import LANGUAGEBIND, readable_imagebind

TEMPLATES = ("a {} thing", "{}")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tiny(tmp_path_factory.mktemp("tiny"), missing={"text": [2, 5]})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    return hub_models.clip(tmp_path_factory.mktemp("clip"))


def of(folder: Path, modality: str = "image", **options: Any) -> HubPerceptor:
    return HubPerceptor(modality=modality, path=str(folder), **options)


def without(dataset: Dataset, *names: str) -> Dataset:
    """The data set as if it lacked some modalities."""
    kept = {m: spec for m, spec in dataset.manifest.modalities.items() if m not in names}
    return Dataset(dataset.root, dataset.manifest.model_copy(update={"modalities": kept}))


def decoded(dataset: Dataset, split: str, modality: str) -> tuple[list[Any], Tensor]:
    """Values of a split in order, and the labels."""
    spec, values, labels = dataset.modality(modality), [], []
    for info in dataset.split(split).shards:
        for _, _, members in read_shard(dataset.shard_path(info)):
            values.append(decode(spec, members[f"{modality}.{spec.ext}"]))
            labels.append(int(members["cls"]))
    return values, torch.tensor(labels)


def image_vectors(clip: Path, pictures: Sequence[Any]) -> Tensor:
    processor = AutoImageProcessor.from_pretrained(clip)
    rgb = [picture.repeat(3, axis=2) for picture in pictures]
    pixels = processor(images=rgb, return_tensors="pt", input_data_format="channels_last")
    with torch.no_grad():
        out = AutoModel.from_pretrained(clip).get_image_features(**pixels)
    return F.normalize(out if isinstance(out, Tensor) else out.pooler_output, dim=-1)


def text_vectors(clip: Path, texts: Sequence[str]) -> Tensor:
    model, tokenizer = AutoModel.from_pretrained(clip), AutoTokenizer.from_pretrained(clip)
    rows = []
    with torch.no_grad():
        for text in texts:
            out = model.get_text_features(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
            rows.append(out if isinstance(out, Tensor) else out.pooler_output)
    return F.normalize(torch.cat(rows), dim=-1)


# classification


def test_a_dual_encoder_classifies_with_its_own_text_side(dataset: Dataset, clip: Path) -> None:
    pictures, label = decoded(dataset, "test", "image")
    vectors = text_vectors(clip, [t.format(c) for c in ("red", "green", "blue") for t in TEMPLATES])
    table = F.normalize(vectors.reshape(3, 2, -1).mean(1), dim=-1)
    hits = ((image_vectors(clip, pictures) @ table.T).argmax(1) == label).double()
    result = classify(dataset, [of(clip)], templates=TEMPLATES, batch=5)
    per_class = {
        name: float(hits[label == c].mean()) for c, name in enumerate(["red", "green", "blue"])
    }
    assert result.per_class == pytest.approx(per_class)
    assert result.samples == 12
    assert result.metrics == pytest.approx(
        {"top1": float(hits.mean()), "top5": 1.0, "mean_per_class": sum(per_class.values()) / 3}
    )


def test_prompts_need_no_text_in_the_data_set(dataset: Dataset, clip: Path) -> None:
    bare = without(dataset, "text")
    whole = classify(dataset, [of(clip)], templates=TEMPLATES)
    assert classify(bare, [of(clip)], templates=TEMPLATES) == whole
    named = [of(clip), of(clip, "text")]
    for configs in (named, named[::-1]):
        assert classify(bare, configs, templates=TEMPLATES) == whole
        assert classify(dataset, configs, templates=TEMPLATES) == whole


@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (7, 0), (4, 1)])
def test_batches_and_workers_change_nothing(
    batch: int, workers: int, dataset: Dataset, clip: Path
) -> None:
    whole = classify(dataset, [of(clip)], split="train")
    assert classify(dataset, [of(clip)], split="train", batch=batch, workers=workers) == whole


def test_texts_are_classified_by_the_encoder_that_reads_them(dataset: Dataset, clip: Path) -> None:
    result = classify(dataset, [of(clip, "text")], split="train", templates=["a {} thing number 1"])
    assert result.samples == 22
    assert result == classify(
        dataset, [of(clip, "text")] * 2, split="train", templates=["a {} thing number 1"]
    )


def test_released_perceptors_classify_with_their_text_side(
    dataset: Dataset, tmp_path: Path
) -> None:
    weights = str(readable_imagebind(tmp_path))
    config = ImageBindPerceptor(modality="image", path=weights, tower="thermal")
    assert classify(without(dataset, "text"), [config]).samples == 12
    other = LanguageBindPerceptor(modality="image", path=str(LANGUAGEBIND / "image"))
    assert other.for_text("text") == other.model_copy(update={"modality": "text"})


# retrieval


def test_retrieval_between_two_modalities(dataset: Dataset, clip: Path) -> None:
    pictures, _ = decoded(dataset, "test", "image")
    texts, label = decoded(dataset, "test", "text")
    scores = image_vectors(clip, pictures) @ text_vectors(clip, texts).T
    order = scores.argsort(dim=1, descending=True, stable=True)
    partner = order == torch.arange(12)[:, None]
    result = retrieve(dataset, [of(clip), of(clip, "text")], batch=5)
    assert result.samples == 12
    assert {name.partition("/")[0] for name in result.metrics} == {"image_to_text", "text_to_image"}
    for k in (1, 5, 10):
        expected = float(partner[:, :k].any(1).double().mean())
        assert result.metrics[f"image_to_text/r{k}_instance"] == pytest.approx(expected)
        same = (label[order[:, :k]] == label[:, None]).any(1)
        expected = float(same.double().mean())
        assert result.metrics[f"image_to_text/r{k}_class"] == pytest.approx(expected)
    small = retrieve(dataset, [of(clip), of(clip, "text")], batch=5, tile=30)
    assert small == result


def test_samples_without_one_of_the_two_take_no_part(dataset: Dataset, clip: Path) -> None:
    assert retrieve(dataset, [of(clip), of(clip, "text")], split="train").samples == 22


def test_features_come_in_the_order_of_the_split(dataset: Dataset, clip: Path) -> None:
    perceptors = [of(clip).load(dataset), of(clip, "text").load(dataset)]
    made = split_features(dataset, "train", perceptors, batch=5)
    pictures, label = decoded(without(dataset, "text"), "train", "image")
    torch.testing.assert_close(made.e["image"], image_vectors(clip, pictures), atol=1e-5, rtol=0)
    assert torch.equal(made.label, label)
    assert (~made.present["text"]).nonzero()[:, 0].tolist() == [2, 5]


# refusals


def test_what_cannot_be_evaluated_is_refused(dataset: Dataset, clip: Path, tmp_path: Path) -> None:
    exported = ExportedPerceptor(path=str(export("vit", dataset, tmp_path / "vit")))
    bert = of(hub_models.bert(tmp_path / "bert"), "text")
    vit = of(hub_models.vit(tmp_path / "hub"))
    second = "name a second perceptor, text=FOLDER"
    with pytest.raises(UserError, match=rf"reads one modality only, no 'text'\): {second}"):
        classify(dataset, [exported])
    with pytest.raises(UserError, match=rf"no text side.*ViTModel has no pool.*{second}"):
        classify(dataset, [vit])
    with pytest.raises(UserError, match=r"gives 6 numbers and hub:bert.* 16: they are not of one"):
        classify(dataset, [of(clip), bert])
    with pytest.raises(UserError, match="neither 'image' nor 'image' is text"):
        classify(dataset, [of(clip), vit])
    with pytest.raises(UserError, match=r"'a photo' needs \{\} once"):
        classify(dataset, [of(clip)], templates=["a photo"])
    with pytest.raises(UserError, match="got 3"):
        classify(dataset, [of(clip)] * 3)
    with pytest.raises(UserError, match="did you mean 'test'"):
        classify(dataset, [of(clip)], split="tset")
    with pytest.raises(UserError, match="needs two perceptors, and got 1"):
        retrieve(dataset, [of(clip)])
    with pytest.raises(UserError, match="both perceptors read 'image'"):
        retrieve(dataset, [of(clip), vit])
    with pytest.raises(UserError, match="not of one space"):
        retrieve(dataset, [of(clip), bert])


def test_splits_without_a_usable_sample_are_refused(tmp_path: Path, clip: Path) -> None:
    bare = make_tiny(tmp_path / "bare", 6, 1, ("image", "text"), missing={"text": range(6)})
    with pytest.raises(UserError, match=r"no sample of split 'train' has both 'image' and 'text'"):
        retrieve(bare, [of(clip), of(clip, "text")], split="train")
    with pytest.raises(UserError, match="no labelled sample with 'text'"):
        classify(bare, [of(clip, "text")], split="train")


# the command


def test_the_command_gives_both_tasks(
    dataset: Dataset, clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image, text, data = f"image={clip}", f"text={clip}", str(dataset.root)
    options = ["--template", *TEMPLATES, "--json"]
    assert main(["eval", "--perceptor", image, "--data", data, *options]) == 0
    answer = json.loads(capfd.readouterr().out)
    expected = classify(dataset, [of(clip)], templates=TEMPLATES)
    for name in ("metrics", "per_class"):
        values = {key: held["value"] for key, held in answer[name].items()}
        assert values == getattr(expected, name)
    assert answer["samples"] == expected.samples
    assert answer["confusion"] is not None
    both = ["--perceptor", image, text, "--data", data, "--task", "retrieve"]
    assert main(["eval", *both, "--split", "train", "--precision", "bf16"]) == 0
    printed = capfd.readouterr().out
    assert "image_to_text/r10_instance" in printed
    assert "text_to_image/map_class" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name a run, an export, or --perceptor"),
        (["runs/x", "--template", "a {}"], "--template is for perceptors"),
        (["runs/x", "--perceptor", "image=x"], "either runs/x or --perceptor"),
        (["--perceptor", "image=x"], "--data is missing"),
        (
            ["--perceptor", "a=x", "--data", "d", "--task", "retrieve", "--template", "{}"],
            "--template is for --task classify",
        ),
    ],
)
def test_the_command_refuses_what_does_not_fit_together(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *options]) == 2
    assert message in capsys.readouterr().err
