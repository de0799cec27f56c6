"""OVA-IB: each modality against all others, by an information bottleneck.

L = L_S + beta * L_M. Sufficiency L_S: each modality in turn is the anchor, and its vector must find
the other modalities of its own sample, by the length of its projection on the subspace that they
span. Minimality L_M: its squared distance from the mean of the others.

Source: Li, Yu, Zu, Wei, Gummeson, Cheng, Jenssen: One vs All Information Bottleneck for Multi-Modal
Alignment (arXiv 2605.29900), equations 9 to 12 and 18 to 21.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from outmodal.errors import UserError
from outmodal.models.features import SHORTEST
from outmodal.models.heads import ProjectionHead
from outmodal.models.kernels.nce import nce
from outmodal.models.kernels.ova import group_scores, min_gram_eigenvalue, ova
from outmodal.models.objectives.base import (
    Embedded,
    Objective,
    ObjectiveOutput,
    ObjectiveSettings,
)

EIGENVALUES_EVERY = 100  # steps, where computing them waits for a device
GRAM_DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


class OvaIbConfig(ObjectiveSettings):
    """OVA-IB, for two to six modalities; its score is |P_query e|.

    A key whose default is None takes the value that `fidelity` gives it.

    Attributes:
        fidelity: rec, the project's resolution, or paper, the printed equations.
        beta: Weight of minimality; 0 is the paper's ablation (vectors may then agree up to sign).
        projector: projection on the others' subspace, or mlp: an MLP from the others' concatenation
            to d, compared by the cosine (the paper's ablation; any number of modalities).
        negatives: own_subspace: a column scores the anchor's vector against the subspace of its
            own sample; own_projection: against the projection of its own sample's vector, which
            lets that vector into its column.
        exclude_positive: Leave the positive out of the denominator: False (rec) as in CLIP, True
            (paper, equation 9), which has no lower bound.
        minimality_on: Measure L_M on unit vectors (rec) or raw embeddings (paper, equation 18),
            where shrinking all of them solves it.
        m2_signed: With two modalities, or a query of one, use the cosine (rec) instead of its
            absolute value (paper).
        ridge: lambda of equation 11, added to the diagonal of each Gram matrix.
        ridge_floor: Least ridge: 1e-5 (rec) bounds the gradient where others nearly coincide; 0
            (paper).
        gram_dtype: Precision of the Gram matrices and their factors.
    """

    name: Literal["ova_ib"] = "ova_ib"
    fidelity: Literal["rec", "paper"] = "rec"
    temperature: float = Field(default=0.01, gt=0.0)
    learn_temperature: bool = False
    beta: float = Field(default=1.0, ge=0.0)
    projector: Literal["projection", "mlp"] = "projection"
    negatives: Literal["own_subspace", "own_projection"] = "own_subspace"
    exclude_positive: bool | None = None
    minimality_on: Literal["unit", "raw"] | None = None
    m2_signed: bool | None = None
    ridge: float = Field(default=1e-8, ge=0.0)
    ridge_floor: float | None = Field(default=None, ge=0.0)
    gram_dtype: Literal["fp32", "fp64"] = "fp64"

    def resolved(self) -> OvaIbConfig:
        """The same configuration with no key left to `fidelity`."""
        preset = PRESETS[self.fidelity]
        return self.model_copy(update={k: v for k, v in preset.items() if getattr(self, k) is None})

    def build(self, modalities: Sequence[str], dim: int) -> OvaIb:
        return OvaIb(modalities, self.resolved(), dim)


PRESETS: dict[str, dict[str, object]] = {
    "rec": {
        "exclude_positive": False,
        "minimality_on": "unit",
        "m2_signed": True,
        "ridge_floor": 1e-5,
    },
    "paper": {
        "exclude_positive": True,
        "minimality_on": "raw",
        "m2_signed": False,
        "ridge_floor": 0.0,
    },
}


class OvaIb(Objective):
    """Mean over all anchors of all samples of CE(scale * |P_n' e^m_n|, n), plus beta * L_M.

    An anchor counts in the samples that have it and at least one other modality; a modality that
    a sample lacks is left out of its subspace and of its mean.

    Attributes:
        config: The configuration, resolved.
        projectors: One for each anchor where `projector` is mlp, else None.
    """

    most: int | None = 6

    def __init__(self, modalities: Sequence[str], config: OvaIbConfig, dim: int) -> None:
        self.most = None if config.projector == "mlp" else OvaIb.most
        super().__init__(modalities, config)
        self.config = config
        self.needs_raw = config.minimality_on == "raw"
        self.ridge = max(config.ridge, config.ridge_floor or 0.0)
        self._lowest: Tensor | None = None
        self.gram_dtype = GRAM_DTYPES[config.gram_dtype]
        self.projectors: nn.ModuleList | None = None
        if config.projector == "mlp":
            width = (len(self.modalities) - 1) * dim
            self.projectors = nn.ModuleList(
                ProjectionHead(width, dim, "mlp", dim) for _ in self.modalities
            )

    def evaluate_batch(self, batch: Embedded) -> ObjectiveOutput:
        columns = self.projectors is not None or self.config.negatives == "own_projection"
        contrast = self._by_columns(batch) if columns else self._by_subspaces(batch)
        distance = minimality(batch, self.config.minimality_on or "unit")
        out = self.report({"sufficiency": contrast, "minimality": self.config.beta * distance})
        logs = {
            **out.logs,
            "loss/minimality": distance.detach(),
            "min_gram_eigenvalue": self._least_eigenvalue(batch),
        }
        return ObjectiveOutput(out.loss, logs)

    def _least_eigenvalue(self, batch: Embedded) -> Tensor:
        """Of any Gram matrix of the global batch; on a GPU, which it waits for, now and then."""
        if self._lowest is None or not batch.held.is_cuda or batch.step % EIGENVALUES_EVERY == 0:
            own = min_gram_eigenvalue(batch.units, batch.held, self.gram_dtype).float()
            self._lowest = batch.exchange.gather(own[None]).amin()
        return self._lowest

    def _by_subspaces(self, batch: Embedded) -> Tensor:
        """L_S; columns are the subspaces of all samples."""
        return ova(
            batch.units,
            self.scale(),
            present=batch.held,
            ridge=self.ridge,
            ridge_floor=0.0,
            gram_dtype=self.gram_dtype,
            exclude_positive=bool(self.config.exclude_positive),
            signed_pair=bool(self.config.m2_signed),
            exchange=batch.exchange,
            impl=self.impl,
            names=batch.names,
            check=False,
        )

    def _by_columns(self, batch: Embedded) -> Tensor:
        """L_S where each sample has one vector per anchor that the anchor is compared with."""
        anchors = batch.anchors
        counts = batch.exchange.sum(anchors.sum(dim=0))
        losses = [
            nce(
                batch.units[m],
                self._facing(batch, m),
                self.scale(),
                both=False,
                exclude_positive=bool(self.config.exclude_positive),
                present=anchors[:, m],
                exchange=batch.exchange,
                impl=self.impl,
                names=(batch.names[m], f"what faces {batch.names[m]}"),
                check=False,
            )
            for m in range(len(batch.names))
        ]
        shares = counts.to(losses[0].dtype) / counts.sum().clamp(min=1)
        return (torch.stack(losses) * shares).sum()

    def _facing(self, batch: Embedded, anchor: int) -> Tensor:
        """[n, d] unit vectors: the MLP's output, or the projection of the anchor's own vector."""
        others = [m for m in range(len(batch.names)) if m != anchor]
        rest = [batch.units[m] for m in others]
        if self.projectors is not None:
            return self._projected(anchor, rest)
        return _unit(self._projection(batch.units[anchor], rest, batch.held[:, others]))

    def _projection(self, e: Tensor, rest: Sequence[Tensor], held: Tensor) -> Tensor:
        """A (A^T A + ridge I)^-1 A^T e of equation 11, [n, d], in the Gram's precision.

        An absent vector is zero and has 1 on the Gram's diagonal, so that it has no part.
        """
        vectors = torch.stack([v.to(self.gram_dtype) for v in rest], dim=1)
        added = torch.diag_embed(self.ridge + (~held).to(vectors.dtype))
        products = vectors @ e.to(vectors.dtype)[:, :, None]
        # the form that does not look for singular matrices, which would wait for the device
        gram = vectors @ vectors.mT + added
        weights: Tensor = torch.linalg.solve_ex(gram, products).result
        return (vectors * weights).sum(dim=1).to(torch.promote_types(e.dtype, torch.float32))

    def _projected(self, anchor: int, rest: Sequence[Tensor]) -> Tensor:
        """[n, d] unit outputs of an anchor's MLP, in the precision that its weights have."""
        assert self.projectors is not None
        projector = self.projectors[anchor]
        weight = next(projector.parameters())
        return _unit(projector(torch.cat(list(rest), dim=1).to(weight.dtype)))

    def score(self, query: Mapping[str, Tensor], candidates: Tensor, target: str) -> Tensor:
        """Length of the candidate's projection on the query's subspace; with `projector: mlp` the
        cosine with the projected query, zeros standing for modalities that it lacks."""
        if self.projectors is not None:
            one = next(iter(query.values()))
            others = [m for m in self.modalities if m != target]
            rest = [query.get(m, torch.zeros_like(one)) for m in others]
            projected = self._projected(self.modalities.index(target), rest)
            return torch.mm(projected, candidates.to(projected.dtype).T)
        return group_scores(
            candidates,
            list(query.values()),
            ridge=self.ridge,
            ridge_floor=0.0,
            gram_dtype=self.gram_dtype,
            signed_pair=bool(self.config.m2_signed),
        ).T


def minimality(batch: Embedded, on: Literal["unit", "raw"]) -> Tensor:
    """L_M (equations 18 and 19): mean over all anchors of all samples of the squared distance from
    the mean of the sample's other modalities.

    On unit vectors, all present, it is (M / (M - 1))^2 * mean(1 - |mean_m e|^2).

    Raises:
        UserError: Raw embeddings are asked for and were not given.
    """
    vectors = batch.units if on == "unit" else batch.raw
    if vectors is None:
        raise UserError(
            "objective.minimality_on 'raw' needs the embeddings before normalisation: give `raw`, "
            "or use 'unit'"
        )
    wide = [v.to(torch.promote_types(v.dtype, torch.float32)) for v in vectors]
    total = torch.stack(wide).sum(dim=0)
    others = (batch.held.sum(dim=1, keepdim=True) - 1).clamp(min=1)
    gaps = [(v - (total - v) / others).square().sum(dim=1) for v in wide]
    return batch.mean(torch.stack(gaps, dim=1).flatten(), batch.anchors.flatten())


def _unit(v: Tensor) -> Tensor:
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    length: Tensor = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return wide / length.clamp_min(SHORTEST)
