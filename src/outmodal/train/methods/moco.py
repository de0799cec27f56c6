"""MoCo: two views of a sample agree, against a queue of other samples' keys.

He, Fan, Wu, Xie and Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning"
(CVPR 2020). As COX's tables run it: the queue is capped at half of the data, and where there are
labels, cross-entropy on them and a low entropy elsewhere are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from outmodal.base import Config
from outmodal.data.batch import Batch, StreamSpec, View
from outmodal.models.features import unit_norm
from outmodal.models.heads import ProjectionHead
from outmodal.models.learners import Learner
from outmodal.models.objectives.entropy import entropy_rows
from outmodal.models.objectives.moco import moco_rows
from outmodal.train import gather
from outmodal.train.clustering import kmeans
from outmodal.train.methods.base import Context, Passes, StepOutput
from outmodal.train.methods.labelled import stream
from outmodal.train.methods.terms import weighted
from outmodal.train.methods.unlabelled import Unlabelled, UnlabelledConfig, check_views, present
from outmodal.train.momentum import Momentum
from outmodal.train.queue import Queue

VIEWS, QUERY, KEY = "views", "views/query", "views/key"
"""Name of the stream of views, and of its two views."""


class MocoKeys(Config):
    """Keys of the contrast.

    Attributes:
        momentum: Decay of the momentum encoder's running mean, at every step.
        queue: Keys of other samples to contrast with; at most half of the training split.
        contrast_head: From representations to what is contrasted: linear, or mlp (MoCo v2).
        contrast_dim: Its size.
        temperature: Of the contrast.
    """

    momentum: float = Field(default=0.999, ge=0.0, lt=1.0)
    queue: int = Field(default=65_536, ge=1)
    contrast_head: Literal["linear", "mlp"] = "linear"
    contrast_dim: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.07, gt=0.0)


class MocoConfig(UnlabelledConfig, MocoKeys):
    """Momentum contrast.

    Attributes:
        lambda_moco: Weight of the contrast.
        lambda_entropy: Weight of the mean entropy on unlabelled samples, in setting semi; 0 is MoCo
            without EntMin.
    """

    name: Literal["moco"] = "moco"
    lambda_moco: float = Field(default=1.0, ge=0.0)
    lambda_entropy: float = Field(default=0.1, ge=0.0)

    def build(self, context: Context) -> Moco:
        """Make the method for a run."""
        return Moco(context, self)


class Contrast:
    """The momentum encoder with its queue, which any method that has a learner can hold.

    No module: what it holds belongs into the method's state.

    Args:
        context: Of the run.
        learner: f.
        head: From representations to what is contrasted.
        keys: Settings.
    """

    def __init__(
        self, context: Context, learner: Learner, head: ProjectionHead, keys: MocoKeys
    ) -> None:
        samples = len(context.labels[context.train_split])
        self._head, self._temperature = head, keys.temperature
        self.momentum = Momentum({"learner": learner, "head": head}, keys.momentum)
        self.queue = Queue(max(1, min(keys.queue, samples // 2)))

    def loss(self, r: Tensor, views: Batch, share: float) -> Tensor:
        """Mean contrast over the global batch, whose keys are then queued. Collective.

        Args:
            r: [B, d_r] the learner's representations of the queries.
            views: The batch with the keys' inputs.
            share: Of a full step that this forward is.
        """
        self.momentum.follow(share)
        rows = views.valid & present(views)
        k = unit_norm(self.momentum["head"](self.momentum["learner"](views.x[KEY]))).detach()
        others = self.queue.rows().get("key")
        losses = moco_rows(unit_norm(self._head(r)), k, others, self._temperature)
        loss = gather.masked_mean(losses, rows)
        self.queue.push({"key": k}, rows)
        return loss

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        queued = {f"queue/{name}": t for name, t in self.queue.state().items()}
        return queued | {f"momentum/{name}": t for name, t in self.momentum.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned; other entries are passed over."""
        for prefix, part in (("queue/", self.queue), ("momentum/", self.momentum)):
            part.load({k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)})


def view_stream(context: Context, unknown: str) -> StreamSpec:
    """Two augmented views of every training sample, drawn independently."""
    views = (View(QUERY, unknown), View(KEY, unknown))
    return StreamSpec(VIEWS, context.train_split, (), context.batch, views=views)


class Moco(Unlabelled):
    """min lambda * contrast [+ CE on the labelled + lambda' * mean entropy of the others]."""

    def __init__(self, context: Context, config: MocoConfig) -> None:
        super().__init__(context, config)
        check_views(self.learner, config.name, "augment")
        self.contrast_head = ProjectionHead(
            self.learner.dim, config.contrast_dim, config.contrast_head
        )
        self.contrast = Contrast(context, self.learner, self.contrast_head, config)
        self.weights = {"moco": config.lambda_moco, "entropy": config.lambda_entropy}

    def param_groups(self) -> list[dict[str, Any]]:
        """The classifier apart: without labels no gradient reaches it, and it stays as it is."""
        parts = {
            "learner": [self.learner, self.contrast_head],
            "classifier": [self.projection, self.classifier],
        }
        return [
            {"name": name, "params": [p for m in modules for p in m.parameters()]}
            for name, modules in parts.items()
        ]

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        shown = stream(self.context, "labelled", (self.unknown,), self.supervision.labelled)
        return [shown, view_stream(self.context, self.unknown)]

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        views = batches[VIEWS]
        parts = {"labelled": batches["labelled"].x[self.unknown]} if "labelled" in batches else {}
        encoded = self.encode_parts({**parts, QUERY: views.x[QUERY]})
        terms = {}
        if "labelled" in batches:
            terms["supervised"] = self.supervised_loss(batches["labelled"], encoded["labelled"][2])
            if self.weights["entropy"]:
                entropy = entropy_rows(encoded[QUERY][2])
                terms["entropy"] = gather.masked_mean(entropy, self.unlabelled_rows(views))
        share = self.share(views, self.context.batch)
        terms["moco"] = self.contrast.loss(encoded[QUERY][0], views, share)
        return weighted(terms, self.weights)

    def evaluate(self, passes: Passes) -> dict[str, float]:
        """See `Unlabelled.evaluate`; without labels the classifier is untrained, and
        "clusters/top1" is the accuracy of k-means on unit representations under the best naming."""
        found = super().evaluate(passes)
        if not self.unsupervised:
            return found
        out = passes.infer("embedding", self.evaluation())
        rows = out["present"].bool()
        if int(rows.sum()) >= len(self.context.classes):
            unit = unit_norm(out["representation"][rows])
            guess = kmeans(unit, len(self.context.classes), self.context.seed).label
            found["clusters/top1"] = self.named(guess, rows)
        return found

    def method_state(self) -> dict[str, Tensor]:
        return self.contrast.state()

    def load_method_state(self, state: Mapping[str, Tensor]) -> None:
        self.contrast.load(state)
