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
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import UserError
from outmodal.train import diagnostics, gather
from outmodal.train.methods.base import Context, Passes, Stage, StepOutput
from outmodal.train.methods.cox_config import CoxConfig
from outmodal.train.methods.cox_connect import Connected
from outmodal.train.methods.cox_explore import AnchorMean, Side, explore_term
from outmodal.train.methods.cox_report import (
    Survey,
    by_agreement,
    describe,
    finite,
    stack_judges,
    unstack_judges,
)
from outmodal.train.methods.cox_sets import (
    DISAGREE,
    NO_ROLE,
    Judge,
    batch_roles,
    form_roles,
    judge_all,
    refit,
    rows_with,
)
from outmodal.train.methods.discrepancy import discrepancy, probed
from outmodal.train.methods.labelled import stream
from outmodal.train.methods.supervised import apply_linear, cross_entropy_rows
from outmodal.train.methods.terms import weighted
from outmodal.train.selection import mix_seeds

_BEFORE = ("agreement_rate", "accuracy_agreement", "accuracy_disagreement")


class Cox(Connected):
    """The method.

    Attributes:
        roles: [N] int64 role of each training sample, see `cox_sets`.
        judges: The heads as refitted at the last refresh.
        before: Figure 6 on the evaluation split when exploration began.
        anchor_mean: Running posterior that `explore: mean_posterior` aims at.
    """

    def __init__(self, context: Context, config: CoxConfig) -> None:
        super().__init__(context, config)
        if self.choices.warmup_epochs >= context.epochs:
            raise UserError(
                f"method.warmup_epochs is {self.choices.warmup_epochs} but the run has "
                f"{context.epochs} epochs, so COX would never explore: lower it, or raise "
                "engine.epochs"
            )
        self.roles = torch.full((len(self.supervision.labels),), NO_ROLE, dtype=torch.int64)
        self.judges: list[Judge] = []
        self.before: dict[str, float] = {}
        self.anchor_mean = AnchorMean(len(context.classes), self.choices.anchor_ema)

    def stages(self) -> Sequence[Stage]:
        warm = self.choices.warmup_epochs
        explore = Stage("explore", self.context.epochs - warm)
        return [Stage("warmup", warm), explore] if warm else [explore]

    def streams(self, stage: str) -> Sequence[StreamSpec]:
        """The known features come in an order of their own and without the unknown modality, so
        that nothing pairs them with unlabelled samples."""
        context, only = self.context, (self.unknown,)
        specs = [
            stream(context, "labelled", (self.unknown, *self.known), self.supervision.labelled),
            stream(context, "known", self.known),
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
        weights = {
            "prior": self.config.vib_kl_weight,
            "heads": self.choices.head_weight,
            "agree": self.choices.lambda_agree,
            "explore": self.config.lambda_explore,
        }
        return weighted(terms, weights)

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
        explore = explore_term(
            self.choices,
            Side.join([Side.of(*encoded[n], r == DISAGREE) for n, r in roles.items()]),
            Side.join(guides),
            self.anchor_mean,
            sizes=self._set_sizes(),
            knn=self.config.knn,
            share=len(gather.all_gather_rows(shown.rows)) / self.context.batch,
        )
        return {"agree": gather.masked_mean(pseudo, role >= 0), "explore": explore}

    def _step_roles(
        self, batches: Mapping[str, Batch], encoded: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Stream -> role of each of its rows, for the unlabelled streams of this step."""
        if self.choices.refresh == "epoch":
            found = {n: batches[n] for n in ("anchor", "disagree") if n in batches}
            looked_up = {n: self.roles[b.index.cpu()].to(b.index.device) for n, b in found.items()}
            return {n: torch.where(self.usable(b), looked_up[n], NO_ROLE) for n, b in found.items()}
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
        survey = self._survey(passes)
        self.judges = self._refit(survey, passes, epoch)
        verdict = judge_all(self.judges, survey.z, survey.own)
        hidden = torch.ones(len(self.roles), dtype=torch.bool)
        hidden[torch.from_numpy(self.supervision.labelled)] = False
        roles = form_roles(
            verdict,
            hidden & survey.present,
            anchors=max(1, round(self.config.select_fraction * len(self.roles))),
            quota=self.config.anchor_class_quota,
        )
        truth = torch.from_numpy(self.supervision.labels)
        logs = describe(survey, verdict, roles, truth, self.context.classes, self.context.seed)
        if stage != "explore":
            return logs
        if not self.before:
            self.before = self._held_out(passes.infer("z", self.evaluation()))
        if self.choices.refresh == "epoch":
            self.roles = roles
            self.anchor_mean.start(survey.logits[self._guides(survey)].softmax(dim=1))
        return logs

    def _survey(self, passes: Passes) -> Survey:
        out = passes.infer("z", stream(self.context, "survey", (self.unknown,)))
        known = passes.infer("mapped", stream(self.context, "survey_known", self.known))
        return Survey(
            z=out["z"],
            logits=out["logits"],
            present=out["present"].bool(),
            mapped={m: known[f"mapped:{m}"] for m in self.known},
            judged={m: known[f"judged:{m}"] for m in self.known},
            known_present={m: known[f"present:{m}"].bool() for m in self.known},
        )

    def _refit(self, survey: Survey, passes: Passes, epoch: int) -> list[Judge]:
        """Copies of the heads after `head_refit_epochs` passes over what they are trained on."""
        labels = torch.from_numpy(self.supervision.labels)
        judges = []
        for k, name in enumerate(self.known):
            state = passes.weights(self.heads[k])
            label = torch.where(survey.known_present[name], labels, -1)
            judges.append(
                refit(
                    Judge(state["weight"].float(), state["bias"].float()),
                    survey.judged[name],
                    label,
                    epochs=self.choices.head_refit_epochs,
                    batch=self.context.batch,
                    seed=mix_seeds(self.context.seed, epoch, k),
                )
            )
        return judges

    def _guides(self, survey: Survey) -> Tensor:
        """[N] bool: the samples that guide the exploration."""
        shown = torch.zeros(len(self.roles), dtype=torch.bool)
        shown[torch.from_numpy(self.supervision.labelled)] = True
        chosen = {
            "labelled": shown,
            "agreement": self.roles >= 0,
            "labelled_agreement": shown | (self.roles >= 0),
        }[self.choices.anchors]
        return chosen & survey.present

    def evaluate(self, passes: Passes) -> dict[str, float]:
        """Top-k of h_O, and Figure 6 on the evaluation split: now, and "before/" exploration."""
        out = passes.infer("z", self.evaluation())
        before = {f"before/{name}": value for name, value in self.before.items()}
        return self.score(out) | finite(self._held_out(out)) | before

    def diagnose(self, passes: Passes) -> dict[str, float]:
        """Figure 5 on the evaluation split: how far each mapped modality lies from z, and how well
        its head, as refitted at the last refresh, tells the classes of z."""
        some = probed(self.context)
        out = passes.infer("z", replace(self.evaluation(), name="diagnose", select=some))
        known = StreamSpec(
            "diagnose_known", self.context.eval_split, self.known, self.context.batch, some
        )
        mapped = passes.infer("mapped", known)
        z, rows = out["z"], out["present"].bool()
        found: dict[str, float] = {}
        for m in self.known:
            v = mapped[f"mapped:{m}"][mapped[f"present:{m}"].bool()]
            found |= discrepancy({m: v, self.unknown: z[rows]})
        truth = torch.from_numpy(self.context.labels[self.context.eval_split][some])[rows]
        for m, judge in zip(self.known, self.judges, strict=False):
            guess = judge(z[rows]).argmax(dim=1)
            found[f"judge_accuracy/{m}"] = diagnostics.accuracy(guess, truth)
        return finite(found)

    def _held_out(self, out: Mapping[str, Tensor]) -> dict[str, float]:
        if not self.judges:
            return {}
        own = out["logits"].argmax(dim=1)
        truth = torch.from_numpy(self.context.labels[self.context.eval_split])
        verdict = judge_all(self.judges, out["z"], own)
        return by_agreement(verdict, own, truth, out["present"].bool() & (truth >= 0))

    def method_state(self) -> dict[str, Tensor]:
        state = {"roles": self.roles}
        state |= {f"anchor_mean/{k}": t for k, t in self.anchor_mean.state().items()}
        if self.judges:
            state |= stack_judges(self.judges)
        if self.before:
            state["before"] = torch.tensor([self.before[k] for k in _BEFORE], dtype=torch.float64)
        return state

    def load_method_state(self, state: Mapping[str, Tensor]) -> None:
        self.roles = state["roles"].clone()
        prefix = "anchor_mean/"
        self.anchor_mean.load(
            {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
        )
        self.judges = unstack_judges(state)
        values = state["before"].tolist() if "before" in state else []
        self.before = dict(zip(_BEFORE, values, strict=False))
