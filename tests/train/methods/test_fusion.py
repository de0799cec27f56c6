"""Fusion of modalities: what stands for a missing one, how it is judged, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from outmodal.data.arrays import VectorInput
from outmodal.data.draws import Draw
from outmodal.data.transform import Transform, Value
from outmodal.errors import UserError
from outmodal.train.methods import NaiveConfig, UmeMmaConfig, build_method
from outmodal.train.methods.fusion import Fusion
from outmodal.train.methods.fusion_checks import spread
from tests.train.methods.fakes import Passes, World, make_context, make_world

THREE = ("touch", "image", "text")
LEARNED = ("touch", "image")


class Sevens(Transform):
    """An input whose blank is 7 everywhere, or 3 before it is normalised."""

    def __init__(self, dim: int) -> None:
        super().__init__(VectorInput(dim=dim), (dim,))

    def __call__(self, value: Value, key: str, draw: Draw | None = None) -> Tensor:
        raise NotImplementedError

    def blank(self, raw: bool = False) -> Tensor:
        return torch.full(self.shape, 3.0 if raw else 7.0)


def fusion(world: World, **keys: object) -> Fusion:
    context = make_context(world, learners=LEARNED)
    inputs = {m: Sevens(t.shape[1]) for m, t in world.x["train"].items()}
    given = {"modalities": THREE, **keys}
    return build_method(  # type: ignore[return-value]
        NaiveConfig.model_validate(given), replace(context, inputs=inputs)
    )


def some(world: World, method: Fusion, split: str = "train"):  # type: ignore[no-untyped-def]
    return world.batch(replace(method.streams("")[0], split=split), np.arange(20))


def test_learners_first_and_vectors_by_name() -> None:
    world = make_world(train=40, test=20)
    context = make_context(world, learners=LEARNED)
    assert build_method(NaiveConfig(), context).modalities == LEARNED
    method = fusion(world)
    assert method.modalities == THREE
    assert method.dims == {"touch": 16, "image": 16, "text": 12}


@pytest.mark.parametrize(("stage", "value"), [("normalized", 7.0), ("raw", 3.0)])
def test_a_substitute_stands_where_something_is_missing(stage: str, value: float) -> None:
    world = make_world(train=40, test=20)
    world.absent["train"]["image"] = [0, 3]
    method = fusion(world, sub_stage=stage)
    batch = some(world, method)
    gone = torch.arange(20) == 5
    shown = method.shown("image", batch, gone)
    for i in range(20):
        held = batch.x["image"][i]
        wanted = torch.full_like(held, value) if i in (0, 3, 5) else held
        assert torch.equal(shown[i], wanted)
    r = method.representations(batch, {"image": gone})
    assert torch.equal(r["image"], method.encode("image", shown))
    assert torch.equal(r["touch"], method.encode("touch", batch.x["touch"]))
    assert torch.equal(r["text"], batch.x["text"])


def test_without_a_transform_zeros_stand() -> None:
    world = make_world(train=40, test=20)
    method = build_method(NaiveConfig(), make_context(world, learners=LEARNED))
    assert isinstance(method, Fusion)
    batch = some(world, method)
    every = torch.ones(20, dtype=torch.bool)
    assert not method.shown("touch", batch, every).any()


def test_a_batch_without_rows_has_no_substitutes() -> None:
    world = make_world(train=40, test=20)
    method = build_method(NaiveConfig(), make_context(world, learners=LEARNED))
    assert isinstance(method, Fusion)
    none = some(world, method).rows(slice(0, 0))
    assert method.shown("touch", none).shape == (0, 8)
    assert method.substitute("touch", none.x["touch"]).tolist() == [[0.0] * 8]


def test_rows_without_anything_are_of_no_use() -> None:
    world = make_world(train=40, test=20)
    world.absent["train"] = {m: [1, 2] for m in THREE} | {"text": [2]}
    method = fusion(world)
    assert method.usable(some(world, method)).tolist() == [i != 2 for i in range(20)]


def test_every_number_of_an_evaluation() -> None:
    world = make_world(train=40, test=60)
    world.absent["test"] = {"touch": [1, 7, 8]}
    world.labels["test"][5] = -1
    method = fusion(world)
    found = method.evaluate(Passes(world, method))
    batch = world.batch(replace(method.streams("")[0], split="test"), np.arange(60))
    truth, known = batch.label, batch.label >= 0

    def rate(logits: Tensor, rows: Tensor) -> float:
        return float((logits.argmax(dim=1) == truth)[rows].double().mean())

    with torch.no_grad():
        r = method.representations(batch)
        assert found["top1"] == rate(method.fused(r), known)
        wanted = [found["top1"]]
        for m in THREE:
            without = method.representations(batch, {m: torch.ones(60, dtype=torch.bool)})
            wanted.append(rate(method.fused(without), known))
            assert found[f"miss_{m}/top1"] == wanted[-1]
            own = rate(method.alone({m: r[m]})[m], known & batch.present[m])
            assert found[f"only_{m}/top1"] == own
    assert found["average/top1"] == pytest.approx(float(np.mean(wanted)))
    assert len(found) == 8


def test_outputs_by_name() -> None:
    world = make_world(train=40, test=20)
    world.absent["train"]["touch"] = [4]
    method = fusion(world).eval()
    batch = some(world, method)
    one = replace(batch, x={"touch": batch.x["touch"]}, present={"touch": batch.present["touch"]})
    for what in ("embedding:touch", "logits:touch"):
        out = method.infer(what, one)
        assert out["present"].tolist() == [i != 4 for i in range(20)]
    logits = method.infer("logits", batch)["logits"]
    assert torch.equal(logits, method.infer("missing", batch)["complete"])
    with pytest.raises(UserError, match="no encoder of 'tuoch'; did you mean 'touch'"):
        method.infer("embedding:tuoch", one)
    with pytest.raises(ValueError, match="unknown kind"):
        method.infer("z", batch)


def test_an_export_has_the_modalitys_own_classifier() -> None:
    world = make_world(train=40, test=20)
    method = fusion(world).eval()
    parts = method.export_parts("image")
    x = world.x["test"]["image"]
    assert parts.head is None
    assert parts.feature_norm == "none"
    assert parts.classifier is not None
    batch = some(world, method, "test")
    out = parts.classifier(parts.learner(x[:20]))
    assert torch.equal(out, method.infer("logits:image", batch)["logits"])
    for name, why in ((None, "name one of"), ("text", "is a vector"), ("imge", "did you mean")):
        with pytest.raises(UserError, match=why):
            method.export_parts(name)


def test_every_encoder_has_its_learning_rate() -> None:
    method = fusion(make_world(train=40, test=20), lr_scale={"image": 0.1})
    groups = {g["name"]: g for g in method.param_groups()}
    assert {n: g.get("lr_scale", 1.0) for n, g in groups.items()} == {
        "encoder:touch": 1.0,
        "encoder:image": 0.1,
        "encoder:text": 1.0,
        "heads": 1.0,
    }
    held = [p for g in groups.values() for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in method.parameters()}
    assert len(held) == len(list(method.parameters()))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"modalities": ("touch", "imge")}, "has 'imge' .* did you mean 'image'"),
        ({"modalities": ("touch",)}, "fuses 2 or more modalities, got touch: add entries"),
        ({"modalities": ("touch", "touch")}, "twice: leave one out"),
        ({"lr_scale": {"txet": 1.0}}, "has 'txet', which is not fused; did you mean 'text'"),
    ],
)
def test_modalities_that_cannot_be_fused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fusion(make_world(train=40, test=20), **keys)


def test_labels_that_cannot_be_learned() -> None:
    world = make_world(train=40, test=20)
    world.labels["train"][world.labels["train"] == 2] = -1
    with pytest.raises(UserError, match="no labelled sample of class 'c' in split 'train'"):
        fusion(world)
    world.labels["train"][:] = -1
    with pytest.raises(UserError, match="has a label, and this method learns from labels: add"):
        fusion(world)
    context = replace(make_context(world, learners=LEARNED), classes=("a",))
    with pytest.raises(UserError, match=r"has 1 class"):
        build_method(NaiveConfig(), context)


def test_samples_that_pair_nothing() -> None:
    world = make_world(train=40, test=20)
    world.absent["train"] = {"touch": list(range(20)), "image": list(range(20, 40))}
    context = make_context(world, learners=LEARNED)
    naive = build_method(NaiveConfig(), context)
    with pytest.raises(UserError, match=r"none of the 40 training samples has 2 of touch, image"):
        naive.on_epoch_start(0, "train", Passes(world, naive))
    ume = build_method(UmeMmaConfig(), context)
    ume.on_epoch_start(0, "unimodal", Passes(world, ume))
    last = build_method(UmeMmaConfig(complete_epochs=1), context)
    with pytest.raises(UserError, match="ume_mma without complete_epochs"):
        last.on_epoch_start(0, "unimodal", Passes(world, last))


def test_the_look_is_spread_over_the_split() -> None:
    assert spread(3).tolist() == [0, 1, 2]
    places = spread(100_000)
    assert len(places) == 256
    assert set(np.diff(places)) <= {390, 391}
    assert len(spread(0)) == 0
