"""COX, semi-supervised: connect known features to an unknown modality, then explore by agreement.

Losses, each a mean over the global batch, and what they train:
    L1 recon       sum_k |c_k(u_k) - z|^2 on labelled pairs      connections c_k, learner f
    L2 supervised  CE(h_O(z), y) on labelled samples             f, h_O
    L3 heads       sum_k CE(h_k(sg v_k), y) on all known data    heads h_k
    L4 agree       CE(h_O(z), agreed class) on anchors           f, h_O
    L5 explore     KL(disagreement || anchors)                   f, h_O
Warm-up epochs use L1 to L3. At the start of each later epoch the heads, refitted on the mapped
features, judge all unlabelled samples and so form the anchors and the disagreement.

Huang, Niu, Han, Sugiyama, Liu: "Towards Out-of-Modal Generalization without Instance-level Modal
Correspondence", ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import UserError
from outmodal.train import gather
from outmodal.train.methods.base import Passes, Stage, StepOutput
from outmodal.train.methods.cox_base import CoxBase
from outmodal.train.methods.cox_explore import Side
from outmodal.train.methods.cox_report import Survey, describe
from outmodal.train.methods.cox_sets import (
    DISAGREE,
    batch_roles,
    form_roles,
    judge_all,
    rows_with,
)
from outmodal.train.methods.labelled import stream
from outmodal.train.methods.supervised import apply_linear, cross_entropy_rows


class Cox(CoxBase):
    """The method with few labelled samples, `setting: semi`."""

    def stages(self) -> Sequence[Stage]:
        warm = self.choices.warmup_epochs
        explore = Stage("explore", self.context.epochs - warm)
        return [Stage("warmup", warm), explore] if warm else [explore]

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        context, only = self.context, (self.unknown,)
        specs = [
            stream(context, "labelled", (self.unknown, *self.known), self.supervision.labelled),
            self.known_stream("known"),
        ]
        if stage == "explore" and self.choices.refresh == "batch":
            specs.append(stream(context, "unlabelled", only, self.supervision.unlabelled))
        elif stage == "explore":
            specs.append(stream(context, "anchor", only, rows_with(self.roles, None)))
            specs.append(stream(context, "disagree", only, rows_with(self.roles, DISAGREE)))
        return specs

    # --- one step ----------------------------------------------------------------------------

    def forward(self, batches: Mapping[str, Batch], stage: str, step: int) -> StepOutput:
        seeds = self.step_seeds(step)
        encoded = self.encode_streams(batches)
        labelled = batches["labelled"]
        z, logits = encoded["labelled"]
        terms = self.connect_terms(labelled, z, seeds)
        terms["supervised"] = self.supervised_loss(labelled, logits)
        terms["heads"] = self.head_loss(batches["known"], seeds)
        if stage == "explore":
            terms |= self._explore_terms(batches, encoded, step)
        return self.total(terms)

    def _explore_terms(
        self, batches: Mapping[str, Batch], encoded: Mapping[str, tuple[Tensor, Tensor]], step: int
    ) -> dict[str, Tensor]:
        """L4 and L5. No true label of an unlabelled sample is read here."""
        self.anchor_mean.advance(step)
        roles = self._step_roles(batches, encoded)
        zero = encoded["labelled"][1].sum() * 0.0
        if not roles:
            return {"agree": zero, "explore": zero}
        logits = torch.cat([encoded[n][1] for n in roles])
        role = torch.cat(list(roles.values()))
        pseudo = cross_entropy_rows(logits, role.clamp_min(-1))
        anchors = [Side.of(*encoded[n], r >= 0) for n, r in roles.items()]
        shown = Side.of(*encoded["labelled"], self.usable(batches["labelled"]))
        guides = {
            "labelled": [shown],
            "agreement": anchors,
            "labelled_agreement": [shown, *anchors],
        }[self.choices.anchors]
        disagree = [Side.of(*encoded[n], r == DISAGREE) for n, r in roles.items()]
        explore = self.explore(disagree, guides, self._set_sizes(), shown.rows)
        return {"agree": gather.masked_mean(pseudo, role >= 0), "explore": explore}

    def _step_roles(
        self, batches: Mapping[str, Batch], encoded: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Stream -> role of each of its rows, for the unlabelled streams of this step."""
        if self.choices.refresh == "epoch":
            return {n: self.looked_up(batches[n]) for n in ("anchor", "disagree") if n in batches}
        if "unlabelled" not in batches:
            return {}
        batch = batches["unlabelled"]
        with torch.no_grad():
            z, logits = encoded["unlabelled"]
            judges = [partial(apply_linear, head) for head in self.heads]
            verdict = judge_all(judges, z, logits.argmax(dim=1))
        rows, count = self.usable(batch), self.config.batch_anchors
        return {"unlabelled": batch_roles(verdict, batch.index, rows, count)}

    def _set_sizes(self) -> tuple[int, int] | None:
        """(#A, #D) of the exploration over the whole split; None where batches form the sets."""
        if self.choices.refresh == "batch":
            return None
        many = int((self.roles >= 0).sum()) if self.choices.anchors != "labelled" else 0
        if self.choices.anchors != "agreement":
            many += len(self.supervision.labelled)
        return many, int((self.roles == DISAGREE).sum())

    # --- between epochs ----------------------------------------------------------------------

    def on_epoch_start(self, epoch: int, stage: str, passes: Passes) -> dict[str, float]:
        """Refit the heads, judge the training split, and (once exploring) form the sets.

        Warm-up epochs do the same for the log alone.
        """
        if epoch == 0:
            self._check_pairs(passes)
        survey = self.survey(passes)
        self.judges = self.refitted(survey, passes, epoch)
        verdict = judge_all(self.judges, survey.z, survey.own)
        candidates = ~self._shown() & survey.present
        quota = self.config.anchor_class_quota
        roles = form_roles(verdict, candidates, anchors=self.anchor_total, quota=quota)
        logs = describe(survey, verdict, roles, self.labels, self.context)
        if stage != "explore":
            return logs
        self.note_before(passes)
        if self.choices.refresh == "epoch":
            self.roles = roles
            self.anchor_mean.start(survey.logits[self._guides(survey)].softmax(dim=1))
        return logs

    def _check_pairs(self, passes: Passes) -> None:
        """Raise UserError where a connection has no pair to learn from."""
        if not self.config.lambda_recon:
            return
        rows = self.supervision.labelled
        own = passes.infer("z", stream(self.context, "pairs", (self.unknown,), rows))
        known = passes.infer("known", stream(self.context, "pairs_known", self.known, rows))
        for m in self.known:
            if not bool((own["present"].bool() & known[f"present:{m}"].bool()).any()):
                raise UserError(
                    f"none of the {len(rows)} labelled training samples has both '{self.unknown}' "
                    f"and '{m}', so nothing connects them: raise method.label_fraction, leave it "
                    "out of method.known, or set method.setting unsup, which needs no pairs"
                )

    def _shown(self) -> Tensor:
        """[N] bool: the samples that show their label."""
        shown = torch.zeros(len(self.roles), dtype=torch.bool)
        shown[torch.from_numpy(self.supervision.labelled)] = True
        return shown

    def _guides(self, survey: Survey) -> Tensor:
        """[N] bool: the samples that guide the exploration."""
        chosen = {
            "labelled": self._shown(),
            "agreement": self.roles >= 0,
            "labelled_agreement": self._shown() | (self.roles >= 0),
        }[self.choices.anchors]
        return chosen & survey.present
