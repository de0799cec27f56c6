"""The connected networks of COX: the learner, and for each known modality a connection c_k into
the learner's feature space and a head h_k that can judge what lies there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import UserError
from outmodal.models.connectors import VIB, prior_divergence
from outmodal.models.features import feature_norm
from outmodal.models.heads import linear_classifier
from outmodal.models.objectives.cox import recon_rows
from outmodal.train import gather
from outmodal.train.methods.base import Context
from outmodal.train.methods.cox_config import CoxConfig
from outmodal.train.methods.cox_init import check_classes, initialise, known_modalities, known_rows
from outmodal.train.methods.labelled import stream
from outmodal.train.methods.supervised import Supervised, apply_linear, cross_entropy_rows
from outmodal.train.selection import mix_seeds

_PAIRS, _KNOWN, _PASS, _CENTROIDS = 0, 1, 2, 3  # salts: the places that draw noise


class Connected(Supervised):
    """Learner, connections and heads, with the two losses that train the latter (L1, L3).

    Attributes:
        config, choices: All keys; the open decisions, settled.
        known: Names of the K known modalities.
        known_rows: Sorted indices of the training samples whose known features are used; None is
            all of them.
        connections, heads: One each per known modality, in that order.
    """

    def __init__(self, context: Context, config: CoxConfig) -> None:
        check_classes(context)
        choices, known = config.choices(), known_modalities(context, config)
        super().__init__(
            context,
            config,
            known=known,
            norm=choices.feat_norm,
            label_draw=choices.label_draw,
            fraction=0.0 if config.setting == "unsup" else None,
        )
        self.config, self.choices, self.known = config, choices, known
        sizes = [context.dims[m] for m in known]
        if choices.heads_on == "raw" and set(sizes) != {self.dim}:
            raise UserError(
                f"method.heads_on 'raw' applies heads of the known features to z, but z has size "
                f"{self.dim} and {', '.join(f'{m} has {context.dims[m]}' for m in known)}: set "
                "method.dim to that size, or method.heads_on mapped"
            )
        start = config.oom_init, config.oom_weights, context.seed
        initialise(self.learner, self.projection, self.classifier, *start)
        self.known_rows = known_rows(context, config.known_fraction)
        self.connections = nn.ModuleList(VIB(d, self.dim, config.connection) for d in sizes)
        classes = len(context.classes)
        self.heads = nn.ModuleList(linear_classifier(self.dim, classes) for _ in known)
        self._call = (-1, 0)

    def param_groups(self) -> list[dict[str, Any]]:
        """Learner, connections and heads apart (C2)."""
        learner = [self.learner, self.projection, self.classifier]
        parts: dict[str, Any] = {
            "learner": learner,
            "connections": self.connections,
            "heads": self.heads,
        }
        return [
            {"name": name, "params": [p for m in modules for p in m.parameters()]}
            for name, modules in parts.items()
        ]

    def step_seeds(self, step: int) -> tuple[int, int, int]:
        """Seeds of a forward's noise: run, step, and which call of the step it is (a step that is
        cut into micro-batches calls several times)."""
        last, count = self._call
        self._call = (step, count + 1 if step == last else 0)
        return (self.context.seed, *self._call)

    def connect_terms(self, batch: Batch, z: Tensor, seeds: tuple[int, ...]) -> dict[str, Tensor]:
        """L1 on a batch's pairs of known features and z, and the bottleneck's prior where it has a
        weight."""
        recon, prior = [], []
        for k, name, u in self._known_features(batch):
            rows = self.usable(batch) & batch.present[name]
            gaps = recon_rows(
                self._map(k, u, gather.seeded_normal(len(u), self._latent, *seeds, k, _PAIRS)),
                z,
                reduction=self.choices.recon_reduction,
                grad_scale=self.choices.recon_grad_scale,
            )
            recon.append(gather.masked_mean(gaps, rows))
            if self.config.vib_kl_weight:
                divergence = prior_divergence(*self._vib(k).encode(u.to(self._dtype(k))))
                prior.append(gather.masked_mean(divergence, rows))
        terms = {"recon": torch.stack(recon).sum()}
        return terms | ({"prior": torch.stack(prior).sum()} if prior else {})

    def head_loss(self, batch: Batch, seeds: tuple[int, ...]) -> Tensor:
        """L3 without its weight, over labelled rows of known data; connections are constants."""
        losses = []
        for k, name, u in self._known_features(batch):
            noise = gather.seeded_normal(len(u), self._latent, *seeds, k, _KNOWN)
            with torch.no_grad():
                x = self._map(k, u, noise) if self.choices.heads_on == "mapped" else u
            rows = batch.valid & batch.present[name] & (batch.label >= 0)
            loss = cross_entropy_rows(apply_linear(self.heads[k], x), batch.label)
            losses.append(gather.masked_mean(loss, rows))
        return torch.stack(losses).sum()

    def infer(self, what: str, batch: Batch) -> dict[str, Tensor]:
        """Beside the learner's outputs, "mapped" for all known modalities or "mapped:NAME" for one:
        {"mapped:NAME": v_k, "present:NAME"} and for raw heads "known:NAME": u_k; or "known":
        {"known:NAME": u_k, "present:NAME"}."""
        kind, _, chosen = what.partition(":")
        if kind not in ("mapped", "known"):
            return super().infer(what, batch)
        out: dict[str, Tensor] = {}
        for k, name, u in self._known_features(batch):
            if kind == "mapped" and chosen not in ("", name):
                continue
            out[f"present:{name}"] = batch.valid & batch.present[name]
            if kind == "known" or self.choices.heads_on == "raw":
                out[f"known:{name}"] = u
            if kind == "mapped":
                noise = None if self.choices.vib_eval_mean else self._pass_noise(batch, k)
                out[f"mapped:{name}"] = self._map(k, u, noise)
        return out

    def centroid_terms(
        self, known: Sequence[Tensor], target: Tensor, rows: Tensor, seeds: tuple[int, ...]
    ) -> dict[str, Tensor]:
        """L1 on class centroids (C14), the same on every rank.

        Args:
            known: K tensors [C, d_k], mean u_k of each class.
            target: [C, d], mean z of each predicted class, constants.
            rows: [C] bool, the classes that count.
            seeds: See `step_seeds`.
        """
        recon = []
        for k, u in enumerate(known):
            generator = torch.Generator().manual_seed(mix_seeds(*seeds, k, _CENTROIDS))
            noise = torch.randn(len(u), self._latent, generator=generator)
            v = self._map(k, u.to(target.device), noise)
            gaps = recon_rows(v, target, reduction=self.choices.recon_reduction)
            recon.append(gaps[rows].sum() / max(1, int(rows.sum())))
        return {"recon": torch.stack(recon).sum()}

    def known_stream(self, name: str) -> StreamSpec:
        """A stream over the known features, in an order of its own and without the unknown
        modality, so that nothing pairs them with unlabelled samples."""
        return stream(self.context, name, self.known, self.known_rows)

    @property
    def _latent(self) -> int:
        return self.config.vib_latent

    def _vib(self, k: int) -> VIB:
        vib = self.connections[k]
        assert isinstance(vib, VIB)
        return vib

    def _dtype(self, k: int) -> torch.dtype:
        return next(self.connections[k].parameters()).dtype

    def _known_features(self, batch: Batch) -> Iterator[tuple[int, str, Tensor]]:
        for k, name in enumerate(self.known):
            if name in batch.x:
                yield k, name, feature_norm(batch.x[name], self.norm)

    def _map(self, k: int, u: Tensor, noise: Tensor | None) -> Tensor:
        """v_k = c_k(u_k) [B, d], fp32."""
        dtype = self._dtype(k)
        drawn = None if noise is None else noise.to(u.device, dtype)
        v: Tensor = self.connections[k](u.to(dtype), drawn)
        return v.float()

    def _pass_noise(self, batch: Batch, k: int) -> Tensor:
        """[B, q] noise that depends on each sample's index alone, not on how a pass is cut."""
        draws = []
        for index in batch.index.tolist():
            generator = torch.Generator().manual_seed(mix_seeds(self.context.seed, k, _PASS, index))
            draws.append(torch.randn(self._latent, generator=generator))
        return torch.stack(draws)
