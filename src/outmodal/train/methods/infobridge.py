"""InfoBridge: fusion with a bound on conditional mutual information (Li et al., "InfoBridge:
Balanced Multimodal Integration through Conditional Dependency Modeling", ICCV 2025).

    encoders, classifier   min L_task - alpha * L_NCE
    critic h               max L_NCE
    L_NCE = mean log h(r^1, r^2, T) + N0/N1 * mean log(1 - h(negatives, T))

averaged over pairs of modalities, with a critic for each. Negatives pair a sample with earlier ones
of the same context T from a buffer: both then follow p(.|T), and L_NCE bounds I(r^1; r^2 | T).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from outmodal.data.batch import Batch, StreamSpec
from outmodal.data.draws import Draw
from outmodal.models.critic import Critic, build_critic, information_rows, margin, nce_rows
from outmodal.models.features import unit_norm
from outmodal.models.objectives.cox import scale_gradient
from outmodal.train import diagnostics, gather
from outmodal.train.clustering import kmeans, matched
from outmodal.train.methods.base import Context, Passes, StepOutput
from outmodal.train.methods.concat import Concat
from outmodal.train.methods.discrepancy import SAMPLES, discrepancy, probed
from outmodal.train.methods.fusion import FUSED
from outmodal.train.methods.infobridge_config import InfoBridgeConfig
from outmodal.train.methods.infobridge_negatives import draw_negatives
from outmodal.train.methods.terms import logged
from outmodal.train.queue import Queue

__all__ = ["InfoBridge", "InfoBridgeConfig"]


class InfoBridge(Concat):
    """Joint training with critics.

    Attributes:
        critics: One a pair of modalities, in the order of `pairs`.
        queue: Earlier samples: "index" [Q], "context" [Q, pairs], "held" [Q, M] and each
            modality's representation.
        clusters: [N] T of each training sample where T is a cluster.
    """

    def __init__(self, context: Context, config: InfoBridgeConfig) -> None:
        super().__init__(context, config)
        self.keys = config
        self.gamma = margin(config.n0, config.n1)
        count = config.contexts(len(context.classes))
        self.critics = nn.ModuleList(
            build_critic(config.critic, self.dims[a], self.dims[b], count) for a, b in self.pairs()
        )
        self.queue = Queue(config.buffer)
        self.clusters: Tensor | None = None

    def steps_per_epoch(self) -> int:
        """Twice as many where critic and encoders take turns."""
        return super().steps_per_epoch() * (2 if self.keys.update == "alternate" else 1)

    def param_groups(self) -> list[dict[str, Any]]:
        """Those of fusion, with the critics apart."""
        groups = super().param_groups()
        held = {id(p) for p in self.critics.parameters()}
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in held]
        return [*groups, {"name": "critics", "params": list(self.critics.parameters())}]

    def on_epoch_start(self, epoch: int, stage: str, passes: Passes) -> dict[str, float]:
        """Group the training samples anew where T is a cluster."""
        super().on_epoch_start(epoch, stage, passes)  # which looks for pairs, once
        if self.keys.context != "cluster":
            return {}
        out = self.features(passes)
        joined = torch.cat([unit_norm(out[f"representation:{m}"]) for m in self.modalities], dim=1)
        before, k = self.clusters, self.keys.clusters
        label = kmeans(joined, k, self.context.seed).label
        if before is not None:
            label = matched(label, before.cpu(), k)
        self.clusters = label.to(gather.world().device)
        moved = float((label != before.cpu()).double().mean()) if before is not None else 1.0
        return {"clusters_moved": moved}

    # --- one step ----------------------------------------------------------------------------

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        batch = batches[FUSED]
        alternate = self.keys.update == "alternate"
        if alternate and self._critics_turn(batch, step):
            with torch.no_grad():
                r = self.representations(batch)
            objective, logs = self.conditional(r, batch, step)
            return logged(-objective, logs)
        r = self.representations(batch)
        task = self.mean_loss(self.fused(r), batch)
        with _fixed(self.critics) if alternate else contextlib.nullcontext():
            # The critics get the whole gradient of L_NCE, the encoders alpha of it.
            near = {m: scale_gradient(t.float(), self.keys.alpha) for m, t in r.items()}
            objective, logs = self.conditional(near, batch, step)
        loss = task - objective + ((1 - self.keys.alpha) * objective).detach()
        return logged(loss, {"loss/task": task, **logs})

    def _critics_turn(self, batch: Batch, number: int) -> bool:
        """Turns change from optimizer step to optimizer step, whatever pieces a step has."""
        pieces = max(1, self.context.batch // (len(batch) * gather.world().size))
        return number // pieces % 2 == 0

    def conditional(
        self, r: Mapping[str, Tensor], batch: Batch, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(L_NCE as a term of this rank's loss, logs) of a batch, which then joins the buffer.

        Args:
            r: modality -> [B, d_m].
            batch: The samples.
            step: Of the draw of negatives.
        """
        held, context = self.presence(batch), self.contexts(r, batch)
        rows = self.usable(batch) & (context >= 0).all(dim=1)
        found = [
            self._pair(place, r, batch, context[:, place], rows, step)
            for place in range(len(self.critics))
        ]
        kept = {f"r/{m}": t.detach().float() for m, t in r.items()}
        self.queue.push({"index": batch.index, "context": context, "held": held, **kept}, rows)
        count = len(found)
        logs = {name: torch.stack([f[name] for f in found]).mean() for name in found[0]}
        logs |= {  # each pair's own bound where there are several
            f"mi_lb/{a}-{b}": f["mi_lb"]
            for (a, b), f in zip(self.pairs(), found, strict=True)
            if count > 1
        }
        return torch.stack([f["loss/nce"] for f in found]).mean(), logs

    def _pair(
        self,
        place: int,
        r: Mapping[str, Tensor],
        batch: Batch,
        context: Tensor,
        rows: Tensor,
        step: int,
    ) -> dict[str, Tensor]:
        """L_NCE of one pair of modalities ("loss/nce"), its bound, and how negatives were found."""
        (a, b), critic = self.pairs()[place], self.critics[place]
        rows = rows & batch.present[a] & batch.present[b]
        t = context.clamp_min(0)
        positive = critic(r[a], r[b], t)
        if not len(self.queue):  # before the first push, alike on all ranks
            zero = positive.sum() * 0.0
            logs = dict.fromkeys(("mi_lb", "negatives_any_T", "negatives_again"), zero.detach())
            return {"loss/nce": zero, **logs}
        buffer = self.queue.rows()
        both = buffer["held"][:, [self.place(a), self.place(b)]].bool().all(dim=1)
        drawn = draw_negatives(
            batch.index,
            context,
            buffer["index"],
            buffer["context"][:, place],
            both,
            self.keys.n0,
            Draw(self.context.seed, step, f"{a}-{b}"),
            same=self.keys.neg == "same_T",
        )
        there = critic(r[a][:, None], buffer[f"r/{b}"][drawn.rows], t[:, None])
        back = critic(buffer[f"r/{a}"][drawn.rows], r[b][:, None], t[:, None])
        counted = rows & drawn.found
        scores = nce_rows(positive, torch.cat([there, back], dim=1), self.gamma)
        return {
            "loss/nce": gather.masked_mean(scores, counted),
            "mi_lb": gather.masked_mean(information_rows(positive, self.gamma).detach(), counted),
            "negatives_any_T": gather.masked_mean(drawn.strange.float(), counted),
            "negatives_again": gather.masked_mean(drawn.repeated.float(), counted),
        }

    # --- contexts ----------------------------------------------------------------------------

    @torch.no_grad()
    def contexts(self, r: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """T of each sample for each pair of modalities, [B, pairs] int64, -1 where unknown."""
        pairs = self.pairs()
        if self.keys.context == "retrieval":
            levels = [self._levels(place, r, batch) for place in range(len(pairs))]
            return torch.stack(levels, dim=1)
        if self.keys.context == "semantic":
            found = batch.label
        elif self.clusters is not None:
            found = self.clusters[batch.index]
        else:
            found = torch.zeros_like(batch.label)
        return found[:, None].expand(-1, len(pairs))

    def _levels(self, place: int, r: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Level of the cosine of the two projections, among the samples of the global batch."""
        (a, b), critic = self.pairs()[place], self.critics[place]
        assert isinstance(critic, Critic)
        with torch.autocast(batch.index.device.type, enabled=False):
            p1, p2 = critic.projected(r[a], r[b])
        cosine = (unit_norm(p1) * unit_norm(p2)).sum(dim=1)
        every = gather.all_gather_rows(cosine[self.held(a, batch) & self.held(b, batch)])
        if self.keys.levels == 1 or not len(every):
            return torch.zeros_like(batch.label)
        cuts = torch.arange(1, self.keys.levels, device=every.device) / self.keys.levels
        return torch.bucketize(cosine, torch.quantile(every, cuts))

    # --- records -----------------------------------------------------------------------------

    def diagnose(self, passes: Passes) -> dict[str, float]:
        """The gap and the MMD between modalities with representations of one size, and the mean
        over classes of the MMD within a class, "mmd_within/A-B" (the paper's Figure 3)."""
        context = self.context
        spec = StreamSpec(
            "diagnose", context.eval_split, self.modalities, context.batch, probed(context)
        )
        out = passes.infer("features", spec)
        held = {m: out[f"present:{m}"].bool() for m in self.modalities}
        r = {m: out[f"representation:{m}"] for m in self.modalities}
        found = discrepancy({m: r[m][held[m]] for m in self.modalities})
        for a, b in self.pairs():
            if f"mmd/{a}-{b}" in found:
                both = held[a] & held[b]
                found[f"mmd_within/{a}-{b}"] = _within(r[a][both], r[b][both], out["label"][both])
        return {name: value for name, value in found.items() if value == value}

    def method_state(self) -> dict[str, Tensor]:
        state = {f"queue/{name}": t for name, t in self.queue.state().items()}
        return state if self.clusters is None else {**state, "clusters": self.clusters}

    def load_method_state(self, state: Mapping[str, Tensor]) -> None:
        held = {n.split("/", 1)[1]: t for n, t in state.items() if n.startswith("queue/")}
        self.queue.load(held)
        if "clusters" in state:
            self.clusters = state["clusters"].to(gather.world().device)


def _within(a: Tensor, b: Tensor, label: Tensor) -> float:
    """Mean over classes with two samples or more of the MMD between their representations."""
    parts = [label == c for c in torch.unique(label[label >= 0]).tolist()]
    gaps = [diagnostics.mmd(a[p], b[p], limit=SAMPLES) for p in parts if int(p.sum()) > 1]
    return sum(gaps) / len(gaps) if gaps else float("nan")


@contextlib.contextmanager
def _fixed(modules: Sequence[nn.Module] | nn.ModuleList) -> Iterator[None]:
    """Parameters without gradients, so that a step passes their group over."""
    held = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in held:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in held:
            p.requires_grad_(True)
