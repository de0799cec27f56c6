"""What both settings of COX share: the heads as judges of a whole split, the roles that follow, the
exploration term, and what is measured.

Huang, Niu, Han, Sugiyama, Liu: "Towards Out-of-Modal Generalization without Instance-level Modal
Correspondence", ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import UserError
from outmodal.train import diagnostics, gather
from outmodal.train.methods.base import Context, Passes, StepOutput
from outmodal.train.methods.cox_bootstrap import aligned
from outmodal.train.methods.cox_config import CoxConfig
from outmodal.train.methods.cox_connect import Connected
from outmodal.train.methods.cox_explore import AnchorMean, Side, explore_term
from outmodal.train.methods.cox_init import anchor_count
from outmodal.train.methods.cox_report import (
    Survey,
    by_agreement,
    finite,
    instance_recall,
    stack_judges,
    unstack_judges,
)
from outmodal.train.methods.cox_sets import NO_ROLE, Judge, judge_all, refit
from outmodal.train.methods.discrepancy import discrepancy, probed
from outmodal.train.methods.labelled import stream
from outmodal.train.methods.terms import weighted
from outmodal.train.selection import mix_seeds

_BEFORE = ("agreement_rate", "accuracy_agreement", "accuracy_disagreement")


class CoxBase(Connected):
    """Base of the semi-supervised and the unsupervised method.

    Attributes:
        roles: [N] int64 role of each training sample, see `cox_sets`.
        judges: The heads as refitted at the last refresh.
        before: Figure 6 on the evaluation split when exploration began.
        anchor_mean: Running posterior that `explore: mean_posterior` aims at.
        labels: [N] class of each training sample. Those of unlabelled samples are for known
            features and for diagnostics only.
        anchor_total: T and S.
    """

    def __init__(self, context: Context, config: CoxConfig) -> None:
        super().__init__(context, config)
        if self.choices.warmup_epochs >= context.epochs:
            raise UserError(
                f"method.warmup_epochs is {self.choices.warmup_epochs} but the run has "
                f"{context.epochs} epochs, so COX would never explore: lower it, or raise "
                "engine.epochs"
            )
        self.labels = torch.from_numpy(self.supervision.labels)
        self.anchor_total = anchor_count(config.select_fraction, len(self.labels))
        self.roles = torch.full((len(self.labels),), NO_ROLE, dtype=torch.int64)
        self.judges: list[Judge] = []
        self.before: dict[str, float] = {}
        self.anchor_mean = AnchorMean(len(context.classes), self.choices.anchor_ema)

    def total(self, terms: Mapping[str, Tensor]) -> StepOutput:
        """The step's loss: its terms, each times its weight."""
        weights = {
            "recon": self.config.lambda_recon,
            "prior": self.config.vib_kl_weight,
            "heads": self.choices.head_weight,
            "agree": self.choices.lambda_agree,
            "explore": self.config.lambda_explore,
        }
        return weighted(terms, weights)

    def explore(
        self,
        disagree: Sequence[Side],
        guides: Sequence[Side],
        sizes: tuple[int, int] | None,
        seen: Tensor,
    ) -> Tensor:
        """L5.

        Args:
            disagree, guides: This rank's rows of either side.
            sizes: (#A, #D) over the whole split, None where batches form the sets.
            seen: [B] rows of the stream by which a forward's share of a step is counted.
        """
        return explore_term(
            self.choices,
            Side.join(disagree),
            Side.join(guides),
            self.anchor_mean,
            sizes=sizes,
            knn=self.config.knn,
            share=len(gather.all_gather_rows(seen)) / self.context.batch,
        )

    def looked_up(self, batch: Batch) -> Tensor:
        """[B] roles of a batch's samples; NO_ROLE where the unknown modality is absent."""
        found = self.roles[batch.index.cpu()].to(batch.index.device)
        return torch.where(self.usable(batch), found, NO_ROLE)

    # --- between epochs ----------------------------------------------------------------------

    def survey(self, passes: Passes) -> Survey:
        """One pass over the unknown modality of the training split, and one over the known ones;
        they are separate, and the second never sees the first's samples as pairs."""
        out = passes.infer("z", stream(self.context, "survey", (self.unknown,)))
        known = passes.infer("mapped", self.known_stream("survey_known"))
        judged = "mapped" if self.choices.heads_on == "mapped" else "known"
        return Survey(
            z=out["z"],
            logits=out["logits"],
            present=out["present"].bool(),
            mapped={m: known[f"mapped:{m}"] for m in self.known},
            judged={m: known[f"{judged}:{m}"] for m in self.known},
            known_present={m: known[f"present:{m}"].bool() for m in self.known},
        )

    def known_labels(self, present: Tensor) -> Tensor:
        """Class of each surveyed known sample, -1 without a label or without the modality."""
        labels = self.labels
        if self.known_rows is not None:
            labels = labels[torch.from_numpy(self.known_rows)]
        return torch.where(present, labels, -1)

    def refitted(self, survey: Survey, passes: Passes, epoch: int) -> list[Judge]:
        """Copies of the heads after `head_refit_epochs` passes over what they are trained on; raw
        ones of unsup judge z as `boot_align` has it."""
        judges = []
        for k, name in enumerate(self.known):
            state = passes.weights(self.heads[k])
            judge = refit(
                Judge(state["weight"].float(), state["bias"].float()),
                survey.judged[name],
                self.known_labels(survey.known_present[name]),
                epochs=self.choices.head_refit_epochs,
                batch=self.context.batch,
                seed=mix_seeds(self.context.seed, epoch, k),
            )
            if self.config.setting == "unsup" and self.choices.heads_on == "raw":
                u = survey.judged[name][survey.known_present[name]]
                judge = aligned(judge, survey.z[survey.present], u, self.choices.boot_align)
            judges.append(judge)
        return judges

    def note_before(self, passes: Passes) -> None:
        """Remember Figure 6 on the evaluation split, once."""
        if not self.before:
            self.before = self._held_out(passes.infer("z", self.evaluation()))

    # --- measuring ---------------------------------------------------------------------------

    def evaluate(self, passes: Passes) -> dict[str, float]:
        """On the evaluation split: top-k of h_O (class-level R@k, from the unknown modality alone),
        "A_to_B/r1_instance" and so on (whether z finds its own sample among the mapped features of
        a known modality), and Figure 6: now, and "before/" exploration."""
        out = passes.infer("z", self.evaluation())
        before = {f"before/{name}": value for name, value in finite(self.before).items()}
        found = self.score(out) | finite(self._held_out(out)) | before
        mapped = passes.infer("mapped", self._evaluation_of_known())
        for m in self.known:
            both = out["present"].bool() & mapped[f"present:{m}"].bool()
            places = instance_recall(out["z"][both], mapped[f"mapped:{m}"][both])
            found |= {f"{self.unknown}_to_{m}/{name}": value for name, value in places.items()}
        return found

    def _evaluation_of_known(self) -> StreamSpec:
        """A pass over the known modalities of the evaluation split."""
        context = self.context
        return StreamSpec("evaluate_known", context.eval_split, self.known, context.batch)

    def diagnose(self, passes: Passes) -> dict[str, float]:
        """Figure 5 on the evaluation split: how far each mapped modality lies from z, and how well
        its head, as refitted at the last refresh, tells the classes of z."""
        some = probed(self.context)
        out = passes.infer("z", replace(self.evaluation(), name="diagnose", select=some))
        known = replace(self._evaluation_of_known(), name="diagnose_known", select=some)
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

    # --- state -------------------------------------------------------------------------------

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
