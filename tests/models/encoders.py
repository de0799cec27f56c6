"""Tiny learners with their transforms, and exports of them, for the tests of this room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from outmodal.data.inputs import (
    ImageInput,
    LogMelInput,
    SeriesInput,
    TokenInput,
    Transform,
    WaveformInput,
)
from outmodal.data.manifest import Dataset
from outmodal.models.card import CardInfo
from outmodal.models.export import export_encoder
from outmodal.models.graph import GraphKind
from outmodal.models.heads import Kind, ProjectionHead, linear_classifier
from outmodal.models.learners import (
    BitLearner,
    Cnn1dLearner,
    ConvNextLearner,
    Learner,
    LearnerBase,
    LstmLearner,
    MlpLearner,
    ResNetLearner,
    TextLearner,
    ViTLearner,
    Wav2Vec2Learner,
    build_learner,
)
from tests.data.tiny import RATE

IMAGE = ImageInput(size=(12, 12), channels=1)
MEL = LogMelInput(seconds=0.2, sample_rate=RATE, n_mels=16, n_fft=200, hop=80)
WAVE = WaveformInput(seconds=0.1, sample_rate=RATE)
FORCE = SeriesInput(length=16, channels=3)
TOKENS = TokenInput(length=10, vocab_size=200)
SMALL: dict[str, Any] = {"size": "custom", "width": 32, "depth": 1, "heads": 2}

LEARNERS: dict[str, LearnerBase] = {
    "vit": ViTLearner(modality="image", input=IMAGE, patch=4, **SMALL),
    "vit_mel": ViTLearner(modality="speech", input=MEL, patch=(8, 5), pool="mean", **SMALL),
    "resnet": ResNetLearner(
        modality="image",
        input=IMAGE,
        depth="custom",
        widths=(8, 16),
        layers=(1, 1),
        block="basic",
        stem=8,
    ),
    "bit": BitLearner(
        modality="image", input=IMAGE, depth="custom", widths=(32, 64), layers=(1, 1), stem=16
    ),
    "convnext": ConvNextLearner(
        modality="image", input=IMAGE, size="custom", patch=2, widths=(8, 16), layers=(1, 1)
    ),
    "wav2vec2": Wav2Vec2Learner(modality="speech", input=WAVE, filters=16, **SMALL),
    "bert": TextLearner(modality="text", input=TOKENS, **SMALL),
    "bert_mean": TextLearner(modality="text", input=TOKENS, pool="mean", **SMALL),
    "cnn1d": Cnn1dLearner(modality="force", input=FORCE, widths=(8, 16)),
    "mlp": MlpLearner(modality="force", input=FORCE, widths=(16,)),
    "lstm": LstmLearner(modality="force", input=FORCE, width=8),
}
OURS = ("cnn1d", "mlp", "lstm")
THEIRS = tuple(name for name in LEARNERS if name not in OURS)

CARD = CardInfo(
    name="tiny-encoder",
    method="align",
    data="tiny",
    command="outmodal train align --data.path tiny",
    metrics={"accuracy": 0.75},
    perceptors=("exported:other@0123456789abcdef",),
    licences={"exported:other@0123456789abcdef": "MIT"},
    details={"seed": "0", "labels": "10 % | drawn"},
    limits=("Ten words only.",),
)


def make(name: str, dataset: Dataset, seed: int = 0) -> tuple[Learner, Transform, Tensor]:
    """A learner whose batch statistics have moved, its transform, and five inputs."""
    config = LEARNERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = build_learner(config)
        transform = config.input.build(dataset, config.modality, None)
        if transform.dtype == torch.int64:
            x = torch.randint(5, 30, (5, *transform.shape))
            x[1:, 6:] = 0
        else:
            x = torch.randn(5, *transform.shape)
        learner.train()(x)
    return learner, transform, x


def head_for(learner: Learner, kind: str, dim: int = 6) -> ProjectionHead | None:
    """A head of this kind, or none."""
    if kind == "none":
        return None
    names: tuple[Kind, ...] = ("linear", "linear_ln", "mlp", "mlp3")
    return ProjectionHead(learner.dim, dim, names[names.index(cast(Kind, kind))], hidden=7)


def export(
    name: str,
    dataset: Dataset,
    out: Path,
    head: str = "linear",
    *,
    classify: bool = False,
    seed: int = 0,
    force: bool = False,
    graphs: Sequence[GraphKind] = (),
) -> Path:
    """Export a tiny learner."""
    learner, transform, x = make(name, dataset, seed)
    g = head_for(learner, head)
    classifier: nn.Linear | None = None
    if classify:
        classifier = linear_classifier(learner.dim if g is None else g.dim, 3)
    return export_encoder(
        learner,
        transform,
        out,
        head=g,
        classifier=classifier,
        classes=dataset.manifest.classes,
        card=CARD,
        sample_inputs=x,
        feature_norm="l2_sqrtd" if classify else None,
        force=force,
        graphs=graphs,
    )
