"""COX, unsupervised: no label and no pair of the unknown modality.

    bootstrap  heads of the known features judge aligned z; the learner is taught the most confident
               agreements (anchors)
    warmup     the same anchors; connections map class means of u_k onto means of z of predicted
               classes; heads learn on the mapped features
    main       nearest mapped features give anchors, their labels and pairs (emergent
               correspondence); disagreement is explored

What is trained, in the terms of `cox`: bootstrap L4; warmup L4, L1 on centroids, L3; main L4 and
L1 on the emergent pairs, L3, L5.

Huang, Niu, Han, Sugiyama, Liu: "Towards Out-of-Modal Generalization without Instance-level Modal
Correspondence", ICLR 2025, sec. 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import UserError
from outmodal.train import diagnostics, gather
from outmodal.train.clustering import matched
from outmodal.train.methods.base import Context, Passes, Stage, StepOutput
from outmodal.train.methods.cox_base import CoxBase
from outmodal.train.methods.cox_bootstrap import aligned, raw_judges
from outmodal.train.methods.cox_config import CoxConfig
from outmodal.train.methods.cox_explore import Side
from outmodal.train.methods.cox_pairs import (
    Correspondence,
    class_means,
    correspond,
    pair_roles,
    same_class,
)
from outmodal.train.methods.cox_report import Survey, describe
from outmodal.train.methods.cox_sets import DISAGREE, Verdict, form_roles, judge_all, rows_with
from outmodal.train.methods.labelled import stream
from outmodal.train.methods.supervised import cross_entropy_rows

_DRAW = 7  # salt of the draw of pairs within a class


class CoxUnsupervised(CoxBase):
    """The method without labels, `setting: unsup`.

    Attributes:
        predicted: [N] class of each sample by h_O at the epoch's start, -1 where it is absent.
        known_means: K x [C, d_k], class means of u_k.
        means, means_count: [C, d] and [C], means of z over predicted classes, and their members.
        partners: K x [A, d_k], u_k of each anchor's partner, in the order of the anchors.
    """

    def __init__(self, context: Context, config: CoxConfig) -> None:
        super().__init__(context, config)
        if self.choices.refresh == "batch":
            raise UserError(
                "method.refresh batch has no unsupervised form, as pairs are looked for over the "
                "whole split: set method.refresh epoch"
            )
        _check_sizes(context, self.known, self.dim)
        classes = len(context.classes)
        self.predicted = torch.full((len(self.labels),), -1, dtype=torch.int64)
        sizes = [context.dims[m] for m in self.known]
        self.known_means = [torch.zeros(classes, size) for size in sizes]
        self.means = torch.zeros(classes, self.dim)
        self.means_count = torch.zeros(classes, dtype=torch.int64)
        self.partners = [torch.zeros(0, size) for size in sizes]

    def stages(self) -> Sequence[Stage]:
        warm = self.choices.warmup_epochs
        main = Stage("main", self.context.epochs - warm)
        before = [Stage("bootstrap", 1), Stage("warmup", warm - 1)]
        return [s for s in before if warm and s.epochs] + [main]

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        context, only = self.context, (self.unknown,)
        specs = [stream(context, "anchor", only, rows_with(self.roles, None))]
        if stage == "bootstrap":
            return specs
        specs.append(self.known_stream("known"))
        if stage == "main":
            specs.append(stream(context, "disagree", only, rows_with(self.roles, DISAGREE)))
        elif self.config.warm_pairs == "class_random":
            specs.append(stream(context, "pool", only, rows_with(self.predicted, None)))
        return specs

    # --- one step ----------------------------------------------------------------------------

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        """No true label of a sample of the unknown modality is read here."""
        seeds = self.step_seeds(step)
        encoded = self.encode_streams(batches)
        anchor, (z, logits) = batches["anchor"], encoded["anchor"]
        roles = self.looked_up(anchor)
        pseudo = cross_entropy_rows(logits, roles.clamp_min(-1))
        terms = {"agree": gather.masked_mean(pseudo, roles >= 0)}
        if stage == "warmup":
            terms |= self._warm_terms(batches, encoded, seeds)
        elif stage == "main":
            terms |= self.connect_terms(self._paired(anchor), z, seeds)
            terms["explore"] = self._explore_term(batches, encoded, roles, step)
        if stage != "bootstrap":
            terms["heads"] = self.head_loss(batches["known"], seeds)
        return self.total(terms)

    def _warm_terms(
        self,
        batches: Mapping[str, Batch],
        encoded: Mapping[str, tuple[Tensor, Tensor]],
        seeds: tuple[int, ...],
    ) -> dict[str, Tensor]:
        """L1 of the warm-up (C14); its targets are constants."""
        if self.config.warm_pairs == "centroid":
            target = self.means.to(encoded["anchor"][0].device)
            rows = (self.means_count >= self.config.centroid_min).to(target.device)
            return self.centroid_terms(self.known_means, target, rows, seeds)
        known = batches["known"]
        if "pool" not in batches:
            return {}
        predicted = self.predicted[batches["pool"].index.cpu()].to(known.label.device)
        pool = gather.all_gather_rows(encoded["pool"][0])
        candidates = gather.all_gather_rows(predicted)
        scores = gather.seeded_normal(len(known), len(pool), *seeds, _DRAW).to(pool.device)
        place, found = same_class(known.label, candidates, scores)
        there = {self.unknown: found}
        batch = replace(known, present={**known.present, **there})
        return self.connect_terms(batch, pool[place], seeds)

    def _paired(self, anchor: Batch) -> Batch:
        """A batch of anchors with the known features of their partners."""
        rows = torch.from_numpy(rows_with(self.roles, None))
        index = anchor.index.cpu()
        place = torch.searchsorted(rows, index).clamp_max(max(len(rows) - 1, 0))
        there = rows[place] == index if len(rows) else torch.zeros_like(index, dtype=torch.bool)
        x, present = dict(anchor.x), dict(anchor.present)
        for name, u in zip(self.known, self.partners, strict=True):
            found = u[place] if len(rows) else u.new_zeros(len(index), u.shape[1])
            x[name] = found.to(anchor.index.device)
            present[name] = there.to(anchor.index.device)
        return replace(anchor, x=x, present=present)

    def _explore_term(
        self,
        batches: Mapping[str, Batch],
        encoded: Mapping[str, tuple[Tensor, Tensor]],
        roles: Tensor,
        step: int,
    ) -> Tensor:
        self.anchor_mean.advance(step)
        guide = Side.of(*encoded["anchor"], roles >= 0)
        if "disagree" not in batches:
            return encoded["anchor"][1].sum() * 0.0
        other = self.looked_up(batches["disagree"]) == DISAGREE
        sizes = int((self.roles >= 0).sum()), int((self.roles == DISAGREE).sum())
        side = Side.of(*encoded["disagree"], other)
        return self.explore([side], [guide], sizes, guide.rows)

    # --- between epochs ----------------------------------------------------------------------

    def on_epoch_start(self, epoch: int, stage: str, passes: Passes) -> dict[str, float]:
        """Form the sets of the stage: see the module."""
        if stage == "bootstrap":
            return self._bootstrap(epoch, passes)
        survey = self.survey(passes)
        self.predicted = torch.where(survey.present, survey.own, -1)
        self.judges = self.refitted(survey, passes, epoch)
        verdict = judge_all(self.judges, survey.z, survey.own)
        if stage == "main":
            self.note_before(passes)
            return self._correspond(survey, verdict, passes)
        self._note_means(survey)
        return describe(survey, verdict, self.roles, self.labels, self.context)

    def _bootstrap(self, epoch: int, passes: Passes) -> dict[str, float]:
        """U1: raw heads on aligned z choose the first anchors."""
        out = passes.infer("known", self.known_stream("survey_known"))
        known = {m: out[f"known:{m}"] for m in self.known}
        labels = {m: self.known_labels(out[f"present:{m}"].bool()) for m in self.known}
        heads = raw_judges(
            known,
            labels,
            self.context.classes,
            epochs=self.config.boot_epochs,
            batch=self.context.batch,
            seed=self.context.seed,
        )
        classes = len(self.context.classes)
        self.known_means = [class_means(known[m], labels[m], classes)[0] for m in self.known]
        survey = self.survey(passes)
        z, how = survey.z[survey.present], self.choices.boot_align
        self.judges = [
            aligned(head, z, known[m][labels[m] >= 0], how)
            for m, head in zip(self.known, heads, strict=True)
        ]
        verdict = judge_all(self.judges, survey.z, survey.own)
        quota = self.config.anchor_class_quota
        self.roles = form_roles(verdict, survey.present, anchors=self.anchor_total, quota=quota)
        self._check_anchors()
        logs = describe(survey, verdict, self.roles, self.labels, self.context)
        fitted = {
            f"raw_head_accuracy/{m}": diagnostics.accuracy(head(known[m]).argmax(1), labels[m])
            for m, head in zip(self.known, heads, strict=True)
        }
        return logs | fitted

    def _check_anchors(self) -> None:
        if not bool((self.roles >= 0).any()):
            raise UserError(
                f"the heads of {', '.join(self.known)} agree on no sample of '{self.unknown}', so "
                "unsupervised COX has nothing to begin with: set method.boot_align standardize, or "
                "name fewer modalities in method.known"
            )

    def _note_means(self, survey: Survey) -> None:
        """Means of z over the classes that h_O predicts (U3)."""
        classes = len(self.context.classes)
        self.means, self.means_count = class_means(survey.z, self.predicted, classes)
        gather.broadcast_tensors([self.means, self.means_count, self.predicted])

    def _correspond(self, survey: Survey, verdict: Verdict, passes: Passes) -> dict[str, float]:
        """U4: emergent pairs, the anchors among them, and the disagreement."""
        labels = [self.known_labels(survey.known_present[m]) for m in self.known]
        found = correspond(
            survey.z,
            survey.present,
            [survey.mapped[m] for m in self.known],
            labels,
            paired=self.config.im_paired,
            aggregate=self.config.dist_agg,
            names=self.known,
        )
        quota, count = self.config.anchor_class_quota, self.anchor_total
        self.roles = pair_roles(found, verdict, survey.present, anchors=count, quota=quota)
        if not bool((self.roles >= 0).any()):
            raise UserError(
                f"the nearest samples of {', '.join(self.known)} have different labels for every "
                f"sample of '{self.unknown}': set method.im_paired true, or name fewer modalities "
                "in method.known"
            )
        chosen = found.partner[:, self.roles >= 0]
        gather.broadcast_tensors([chosen])
        self.partners = [self._features(m, chosen[k], passes) for k, m in enumerate(self.known)]
        guides = survey.logits[self.roles >= 0]
        self.anchor_mean.start(guides.softmax(dim=1))
        logs = describe(survey, verdict, self.roles, self.labels, self.context)
        return logs | self._pair_logs(found, chosen)

    def _features(self, name: str, partner: Tensor, passes: Passes) -> Tensor:
        """u_k [A, d_k] of partners, which are rows of the survey of known features."""
        unique, place = torch.unique(partner, return_inverse=True)
        rows = unique.numpy()
        if self.known_rows is not None:
            rows = self.known_rows[rows]
        spec = replace(self.known_stream("partners"), modalities=(name,), select=rows)
        return passes.infer("known", spec)[f"known:{name}"][place]

    def _pair_logs(self, found: Correspondence, chosen: Tensor) -> dict[str, float]:
        """Purity of all pairs and of those at hand; how often a pair is the sample's own."""
        anchors = self.roles >= 0
        rows = torch.nonzero(anchors).flatten()
        place = chosen[0]
        if self.known_rows is not None:
            place = torch.from_numpy(self.known_rows)[place]
        paired = found.label >= 0
        return {
            "pair_purity": diagnostics.accuracy(found.label[paired], self.labels[paired]),
            "pair_distance": float(found.distance[anchors].mean()),
            "pair_is_own": float((place == rows).double().mean()),
        }

    def score(self, out: Mapping[str, Tensor]) -> dict[str, float]:
        """Beside `Supervised.score`, "matched/top1": under the best one-to-one naming of classes.

        It is above chance whatever is predicted, and says how well the groups are, not their names.
        """
        found = super().score(out)
        truth = torch.from_numpy(self.context.labels[self.context.eval_split])
        rows = out["present"].bool() & (truth >= 0)
        own = out["logits"][rows].argmax(dim=1)
        names = matched(own, truth[rows], len(self.context.classes))
        found["matched/top1"] = diagnostics.accuracy(names, truth[rows])
        return found

    # --- state -------------------------------------------------------------------------------

    def method_state(self) -> dict[str, Tensor]:
        state = super().method_state()
        state |= {"predicted": self.predicted, "means": self.means, "members": self.means_count}
        state |= {f"known_means/{k}": t for k, t in enumerate(self.known_means)}
        return state | {f"partners/{k}": t for k, t in enumerate(self.partners) if len(t)}

    def load_method_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_method_state(state)
        self.predicted, self.means = state["predicted"].clone(), state["means"].clone()
        self.means_count = state["members"].clone()
        self.known_means = [state[f"known_means/{k}"].clone() for k in range(len(self.known))]
        held = [state.get(f"partners/{k}", t[:0]) for k, t in enumerate(self.partners)]
        self.partners = [t.clone() for t in held]


def _check_sizes(context: Context, known: Sequence[str], dim: int) -> None:
    """Raises UserError where heads of the known features cannot read z, which U1 needs."""
    if {context.dims[m] for m in known} != {dim}:
        sizes = ", ".join(f"{m} has {context.dims[m]}" for m in known)
        raise UserError(
            f"unsupervised COX begins with heads of the known features on z, but z has size {dim} "
            f"and {sizes}: set method.dim to that size, or name modalities of one size in "
            "method.known"
        )
