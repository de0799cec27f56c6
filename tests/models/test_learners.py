"""Every learner: shapes, no weight out of a loss's reach, and the export that AutoModel loads."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from transformers import AutoModel
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer
from transformers.utils import logging

from outmodal.data.inputs import (
    ImageInput,
    LogMelInput,
    SeriesInput,
    TokenInput,
    VectorInput,
    WaveformInput,
)
from outmodal.errors import UserError
from outmodal.models.learners import (
    BitLearner,
    Cnn1dLearner,
    ConvNextLearner,
    Learner,
    LearnerBase,
    LearnerConfig,
    LstmLearner,
    MlpLearner,
    ResNetLearner,
    TextLearner,
    ViTLearner,
    Wav2Vec2Learner,
    build_learner,
)

logging.set_verbosity_error()
logging.disable_progress_bar()

IMAGE = ImageInput()
WIDE = ImageInput(size=(32, 48), channels=4)
MEL = LogMelInput()
WAVE = WaveformInput(seconds=0.25)
TEXT = TokenInput(length=10, vocab_size=60)
SERIES = SeriesInput(length=32, channels=6)
VECTOR = VectorInput(dim=7)

TRANSFORMERS: list[LearnerBase] = [
    ViTLearner(modality="m", input=IMAGE, size="micro", patch=7),
    ViTLearner(modality="m", input=MEL, size="micro", patch=(8, 5), pool="mean"),
    ViTLearner(
        modality="m", input=WIDE, size="custom", width=24, depth=2, heads=2, patch=16, mlp_ratio=2
    ),
    ResNetLearner(modality="m", input=MEL, depth="custom", widths=(16, 32), layers=(1, 2), stem=8),
    ResNetLearner(
        modality="m",
        input=WIDE,
        depth="custom",
        widths=(16, 32),
        layers=(1, 1),
        block="bottleneck",
        stem=8,
    ),
    BitLearner(modality="m", input=MEL, depth="micro"),
    BitLearner(modality="m", input=WIDE, depth="custom", widths=(32, 64), layers=(1, 1)),
    ConvNextLearner(
        modality="m", input=MEL, size="custom", widths=(16,), layers=(1,), patch=(40, 2)
    ),
    ConvNextLearner(modality="m", input=IMAGE, size="micro"),
    ConvNextLearner(modality="m", input=MEL, size="micro", layer_scale=0, patch=2),
    ConvNextLearner(
        modality="m", input=WIDE, size="custom", widths=(8, 16), layers=(1, 1), layer_scale=1.0
    ),
    Wav2Vec2Learner(
        modality="m", input=WAVE, size="custom", width=32, depth=2, heads=2, filters=16
    ),
    TextLearner(modality="m", input=TEXT, size="tiny"),
    TextLearner(modality="m", input=TEXT, size="custom", width=24, depth=1, heads=2, pool="mean"),
]
PLAIN: list[LearnerBase] = [
    Cnn1dLearner(modality="m", input=SERIES, widths=(16, 24)),
    Cnn1dLearner(modality="m", input=WAVE, widths=(8, 16), first_stride=8),
    Cnn1dLearner(modality="m", input=MEL, widths=(16,)),
    MlpLearner(modality="m", input=VECTOR, widths=(16, 12)),
    MlpLearner(modality="m", input=IMAGE, widths=(16,)),
    LstmLearner(modality="m", input=SERIES, width=8, depth=2),
    LstmLearner(modality="m", input=MEL, width=8, bidirectional=False, pool="last"),
]
ALL = TRANSFORMERS + PLAIN


def name_of(config: LearnerBase) -> str:
    """A readable test id."""
    return f"{getattr(config, 'name', '')}-{config.input.name}-{getattr(config, 'size', '')}"


def made(config: LearnerBase, seed: int = 0) -> Learner:
    """A learner with seeded weights."""
    torch.manual_seed(seed)
    return build_learner(config)


def example(config: LearnerBase, rows: int = 3) -> Tensor:
    """Inputs of the learner's shape; token rows differ in length."""
    generator = torch.Generator().manual_seed(1)
    if config.input.name != "tokens":
        return torch.randn(rows, *config.input.shape, generator=generator)
    ids = torch.randint(5, 60, (rows, *config.input.shape), generator=generator)
    for row in range(rows):
        ids[row, 4 + row :] = 0
    return ids


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_shape_and_gradient_of_every_weight(config: LearnerBase) -> None:
    learner = made(config).train()
    r = learner(example(config))
    assert r.shape == (3, learner.dim)
    assert torch.isfinite(r).all()
    # a plain sum would be constant behind a final LayerNorm
    (r * torch.randn(learner.dim)).square().sum().backward()
    unreached = [n for n, p in learner.named_parameters() if p.grad is None]
    assert unreached == []
    for name, parameter in learner.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_the_seed_decides_the_weights_and_the_batch_the_output(config: LearnerBase) -> None:
    one, two = made(config), made(config)
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    x = example(config)
    # no dropout anywhere: in training as well, the output is a function of the batch
    assert torch.equal(one.train()(x), two.train()(x))
    one.eval()
    row = one(x)[1:2]
    torch.testing.assert_close(one(x[1:2]), row, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(one(x[:1]), row, atol=1e-6)


@pytest.mark.parametrize("config", TRANSFORMERS, ids=name_of)
def test_auto_model_gives_the_same_output(config: LearnerBase, tmp_path: Path) -> None:
    learner = made(config).eval()
    assert learner.in_transformers
    learner.backbone.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    reloaded = copy.deepcopy(learner)
    reloaded.backbone = loaded
    x = example(config)
    with torch.no_grad():
        torch.testing.assert_close(reloaded(x), learner(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_configuration_survives_json(config: LearnerBase) -> None:
    adapter: TypeAdapter[LearnerBase] = TypeAdapter(LearnerConfig)
    assert adapter.validate_json(config.model_dump_json()) == config


def test_preset_sizes() -> None:
    picture = ImageInput(size=(64, 64), channels=3)
    with torch.device("meta"):
        counts = {
            c.name: sum(p.numel() for p in build_learner(c).parameters())
            for c in (
                ViTLearner(modality="m", input=ImageInput(size=(224, 224), channels=3)),
                ResNetLearner(modality="m", input=picture, depth="50"),
                BitLearner(modality="m", input=picture, depth="50"),
                Wav2Vec2Learner(modality="m", input=WAVE),
                TextLearner(modality="m", input=TokenInput(length=512, vocab_size=30522)),
            )
        }
    # published sizes without heads and poolers: DeiT-T 5.7 M with its 1000-way head, ResNet-50
    # 25.6 M with its head, wav2vec2-base 94.4 M, BERT-base 109.5 M with its pooler
    assert counts["vit"] == pytest.approx(5.52e6, rel=0.01)
    assert counts["resnet"] == pytest.approx(23.5e6, rel=0.01)
    assert counts["bit"] == pytest.approx(23.5e6, rel=0.01)
    assert counts["wav2vec2"] == pytest.approx(94.4e6, rel=0.01)
    assert counts["bert"] == pytest.approx(108.9e6, rel=0.01)


@pytest.mark.parametrize("depth", [18, 34, 152])
def test_resnet_depths_from_yaml(depth: int) -> None:
    config = ResNetLearner.model_validate(
        {"modality": "m", "input": {"name": "image", "size": [64, 64]}, "depth": depth}
    )
    with torch.device("meta"):
        learner = build_learner(config)
    assert learner.dim == (512 if depth < 50 else 2048)


def test_text_ignores_padding_and_survives_absence() -> None:
    for pool in ("cls", "mean"):
        short = TextLearner(modality="m", input=TEXT, size="tiny", pool=pool)  # type: ignore[arg-type]
        learner = made(short).eval()
        ids = torch.tensor([[2, 7, 8, 3, 0, 0, 0, 0, 0, 0]])
        padded, bare = learner(ids), learner(ids[:, :4])
        torch.testing.assert_close(padded, bare, atol=1e-5, rtol=1e-4)
        assert torch.isfinite(learner(torch.zeros(2, 10, dtype=torch.int64))).all()


def test_stochastic_depth_only_in_training(tmp_path: Path) -> None:
    config = ViTLearner(modality="m", input=IMAGE, size="micro", patch=7, drop_path=0.5)
    plain = made(config.model_copy(update={"drop_path": 0.0}))
    learner = made(config)
    x = example(config)
    assert torch.equal(learner.eval()(x), plain.eval()(x))
    torch.manual_seed(3)
    one = learner.train()(x)
    torch.manual_seed(3)
    assert torch.equal(copy.deepcopy(learner)(x), one)
    torch.manual_seed(4)
    assert not torch.equal(learner(x), one)
    # the expectation over draws is near the output without it
    rows = torch.stack([learner(x).detach() for _ in range(200)])
    expected = plain(x).detach()
    error = (rows.mean(0) - expected).norm() / expected.norm()
    assert float(error) < 0.35
    learner.backbone.save_pretrained(tmp_path)


def test_bf16_weights() -> None:
    for config in ALL:
        learner = made(config).to(torch.bfloat16)
        x = example(config)
        r = learner(x if x.dtype == torch.int64 else x.to(torch.bfloat16))
        assert r.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ViTLearner(modality="speech", input=WAVE), r"'speech' reads pictures .* \(2000,\)"),
        (ViTLearner(modality="m", input=IMAGE, patch=(7, 40)), "choose a smaller patch"),
        (ConvNextLearner(modality="m", input=IMAGE), "fewer stages"),
        (Wav2Vec2Learner(modality="m", input=VECTOR), "choose input 'waveform'"),
        (TextLearner(modality="m", input=VECTOR), "choose input 'tokens'"),
        (LstmLearner(modality="m", input=VECTOR), "choose another learner or input"),
    ],
)
def test_inputs_that_do_not_fit(config: LearnerBase, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_learner(config)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (ViTLearner, {"size": "custom", "width": 8}, "wants width, depth and heads"),
        (ViTLearner, {"patch": (4, 0)}, "greater than 0"),
        (ViTLearner, {"size": "tiny", "width": 8}, "for size custom, not tiny"),
        (
            ViTLearner,
            {"size": "custom", "width": 10, "depth": 1, "heads": 3},
            "no multiple of heads 3",
        ),
        (ResNetLearner, {"depth": "custom", "widths": (8,)}, "one each for every stage"),
        (ResNetLearner, {"depth": 18, "block": "basic"}, "block is for depth custom"),
        (BitLearner, {"depth": "micro", "groups": 3}, "multiples of 8 and of groups 3"),
        (BitLearner, {"depth": "custom", "layers": (1,)}, "one each for every stage"),
        (ConvNextLearner, {"widths": (8,)}, "for custom, not size tiny"),
        (Wav2Vec2Learner, {"size": "custom"}, "wants width, depth and heads"),
        (TextLearner, {"size": "huge"}, "tiny"),
        (Cnn1dLearner, {"widths": ()}, "at least 1"),
    ],
)
def test_configurations_that_cannot_work(
    kind: type[LearnerBase], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate({"modality": "m", "input": IMAGE, **fields})


def test_residual_branches_are_dropped_sample_by_sample() -> None:
    torch.manual_seed(0)
    config = ResNetLearner(
        modality="m", input=IMAGE, depth="custom", widths=(8, 8), layers=(1, 2), drop_path=0.5
    )
    learner = build_learner(config)
    blocks = [m for m in learner.backbone.modules() if isinstance(m, ResNetBasicLayer)]
    hooks = [list(b.layer._forward_hooks.values()) for b in blocks]
    assert [[hook.rate for hook in held] for held in hooks] == [[], [0.25], [0.5]]
    block, x = blocks[-1], torch.rand(4000, 8, 2, 2)
    block.train()
    with torch.no_grad():
        branch = block.layer(x)
        gone = (branch == 0).flatten(1).all(1)
        assert float(gone.float().mean()) == pytest.approx(0.5, abs=0.03)
        learner.eval()
        assert not bool((block.layer(x) == 0).flatten(1).all(1).any())
    plain = build_learner(config.model_copy(update={"drop_path": 0.0}))
    assert plain.state_dict().keys() == learner.state_dict().keys()
