"""A small in-memory world for methods: Gaussian modalities, streams, passes, a training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.draws import Draw
from outmodal.data.mixing import Mixer
from outmodal.models.learners import Learner
from outmodal.train.methods.base import Context, Method

CLASSES = ("a", "b", "c", "d")


class TinyLearner(Learner):
    """A two-layer perceptron from vectors to 16 dimensions."""

    def __init__(self, modality: str, inputs: int, dim: int = 16) -> None:
        nn.Module.__init__(self)
        self.modality, self.dim = modality, dim
        self.backbone = nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)


@dataclass
class World:
    """Data of a run.

    Attributes:
        x: split -> modality -> [N, d].
        labels: split -> [N].
        absent: split -> modality -> indices that lack it.
        read: (stream, modality) pairs that any batch has carried.
    """

    x: dict[str, dict[str, Tensor]]
    labels: dict[str, NDArray[np.int64]]
    absent: dict[str, dict[str, list[int]]]
    read: set[tuple[str, str]]

    def batch(self, spec: StreamSpec, index: NDArray[np.int64]) -> Batch:
        rows = torch.from_numpy(np.asarray(index, dtype=np.int64))
        present = {}
        for m in spec.modalities:
            self.read.add((spec.name, m))
            gone = torch.tensor(self.absent[spec.split].get(m, []), dtype=torch.int64)
            present[m] = ~torch.isin(rows, gone)
        return Batch(
            index=rows,
            label=torch.from_numpy(self.labels[spec.split])[rows],
            x={
                m: self.x[spec.split][m][rows] * present[m][:, None].float()
                for m in spec.modalities
            },
            present=present,
            valid=torch.ones(len(rows), dtype=torch.bool),
            key=rows,
        )

    def step(self, specs: list[StreamSpec], step: int, seed: int = 0) -> dict[str, Batch]:
        """One batch of every stream with samples, drawn with a seed of the stream's own."""
        batches = {}
        for spec in specs:
            pool = np.arange(len(self.labels[spec.split])) if spec.select is None else spec.select
            if len(pool):
                salt = sum(spec.name.encode())
                rng = np.random.default_rng([seed, step, salt])
                batch = self.batch(spec, rng.choice(pool, spec.batch))
                if spec.mixing is not None:
                    mixer = Mixer(spec.mixing, Draw(seed, step, spec.name))
                    batch = replace(batch, mixer=mixer).to(torch.device("cpu"))
                batches[spec.name] = batch
        return batches


class Passes:
    """Full passes of a method over a world, as an engine of one process gives them."""

    def __init__(self, world: World, method: Method) -> None:
        self.world, self.method = world, method

    def infer(self, what: str, spec: StreamSpec) -> dict[str, Tensor]:
        rows = np.arange(len(self.world.labels[spec.split]))
        if spec.select is not None:
            rows = spec.select
        training = self.method.training
        self.method.eval()
        parts = []
        with torch.no_grad():
            for start in range(0, len(rows), spec.batch):
                batch = self.world.batch(spec, rows[start : start + spec.batch])
                parts.append(self.method.infer(what, batch))
        self.method.train(training)
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        return {k: t.detach().clone() for k, t in module.state_dict().items()}

    @torch.no_grad()
    def set_weights(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        for name, p in module.named_parameters():
            if name in weights:
                p.copy_(weights[name])


def make_world(
    known: Mapping[str, int] | None = None,
    *,
    train: int = 400,
    test: int = 400,
    noise: float = 1.0,
    seed: int = 0,
) -> World:
    """Classes with `noise` around their centres; the unknown modality "touch" (8 dimensions) is
    a nonlinear view of the same latent vector that the known ones show."""
    known = {"image": 12, "text": 12} if known is None else known
    g = torch.Generator().manual_seed(seed)
    centres = 2.0 * torch.randn(len(CLASSES), 6, generator=g)
    views = {m: torch.randn(6, d, generator=g) for m, d in {"touch": 8, **known}.items()}
    x: dict[str, dict[str, Tensor]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    for split, count in (("train", train), ("test", test)):
        y = torch.randint(0, len(CLASSES), (count,), generator=g)
        latent = centres[y] + torch.randn(count, 6, generator=g)
        x[split] = {}
        for m, view in views.items():
            loud = noise * (1.5 if m == "touch" else 0.3)
            signal = torch.tanh(latent @ view / 3) if m == "touch" else latent @ view
            x[split][m] = signal + loud * torch.randn(signal.shape, generator=g)
        labels[split] = y.numpy()
    return World(x, labels, {"train": {}, "test": {}}, set())


def make_context(
    world: World, *, seed: int = 0, batch: int = 32, epochs: int = 8, learners: tuple[str, ...] = ()
) -> Context:
    """A context over a world with a tiny learner for "touch" (and others on request)."""
    torch.manual_seed(seed)
    sizes = {m: t.shape[1] for m, t in world.x["train"].items()}
    names = learners or ("touch",)
    return Context(
        seed=seed,
        batch=batch,
        classes=CLASSES,
        labels=world.labels,
        dims={m: d for m, d in sizes.items() if m not in names},
        learners={m: TinyLearner(m, sizes[m]) for m in names},
        train_split="train",
        eval_split="test",
        epochs=epochs,
    )


def run(method: Method, world: World, *, lr: float = 3e-3) -> list[dict[str, float]]:
    """Train through all stages with Adam; return what each epoch's start logged."""
    passes, history, step, epoch = Passes(world, method), [], 0, 0
    groups = [{"params": g["params"]} for g in method.param_groups()]
    optimizer = torch.optim.Adam(groups, lr=lr)
    for stage in method.stages():
        for _ in range(stage.epochs):
            history.append(method.on_epoch_start(epoch, stage.name, passes))
            specs = list(method.streams(stage.name))
            for _ in range(method.steps_per_epoch()):
                batches = world.step(specs, step, method.context.seed)
                optimizer.zero_grad()
                method(batches, stage.name, step).loss.backward()
                optimizer.step()
                step += 1
            epoch += 1
    return history
