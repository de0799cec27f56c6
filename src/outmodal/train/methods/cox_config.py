"""The keys of COX. Each decision that the paper leaves open is a key, numbered C1 to C17 in
`CoxConfig`; its reading under each fidelity is in `PRESETS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from outmodal.base import Config
from outmodal.models.connectors import VIBConfig
from outmodal.models.features import FeatureNorm
from outmodal.models.objectives.cox import Direction
from outmodal.train.methods.labelled import LabelDraw, LabelledConfig
from outmodal.train.nearest import Aggregate

if TYPE_CHECKING:
    from outmodal.train.methods.base import Context
    from outmodal.train.methods.cox import Cox
    from outmodal.train.methods.cox_unsup import CoxUnsupervised

Setting = Literal["semi", "unsup"]
BootAlign = Literal["standardize", "coral", "none"]
WarmPairs = Literal["centroid", "class_random"]

HeadsOn = Literal["mapped", "raw"]
Anchors = Literal["labelled_agreement", "labelled", "agreement"]
Explore = Literal["mean_posterior", "all_pairs", "knn"]
Refresh = Literal["epoch", "batch"]
OomInit = Literal["scratch", "perceptor_partial", "perceptor"]
Reduction = Literal["mean", "sum"]


class CoxChoices(Config):
    """Every open decision, settled; the defaults are fidelity `rec`. See `CoxConfig`."""

    heads_on: HeadsOn = "mapped"
    head_weight: float = 0.5
    head_refit_epochs: int = 1
    vib_eval_mean: bool = True
    recon_grad_scale: float = 1.0
    recon_reduction: Reduction = "mean"
    feat_norm: FeatureNorm = "l2_sqrtd"
    anchors: Anchors = "labelled_agreement"
    lambda_agree: float = 1.0
    explore: Explore = "mean_posterior"
    explore_kl: Direction = "d_to_a"
    anchor_ema: float = 0.99
    warmup_epochs: int = 5
    refresh: Refresh = "epoch"
    label_draw: LabelDraw = "balanced"
    boot_align: BootAlign = "standardize"


PRESETS: dict[str, CoxChoices] = {
    "rec": CoxChoices(),
    "paper": CoxChoices(
        heads_on="raw",
        head_weight=1.0,
        recon_grad_scale=0.0,
        recon_reduction="sum",
        feat_norm="none",
        anchors="labelled",
        lambda_agree=0.0,
        explore="all_pairs",
        warmup_epochs=0,
        boot_align="none",
    ),
    "code": CoxChoices(
        heads_on="raw",
        head_refit_epochs=0,
        vib_eval_mean=False,
        feat_norm="none",
        anchors="agreement",
        explore_kl="a_to_d",
        anchor_ema=1.0,
        warmup_epochs=6,
        refresh="batch",
        label_draw="uniform",
        boot_align="none",
    ),
}

UNSUPERVISED: dict[str, dict[str, object]] = {
    "rec": {},
    # the paper has a warm-up here but not its length, and trains on the anchors in both phases
    "paper": {"warmup_epochs": 5, "lambda_agree": 1.0},
    # the released code has no unsupervised branch: the paper's procedure, the code's other choices
    "code": {"refresh": "epoch"},
}
"""What differs from `PRESETS` where `setting` is unsup."""


class CoxConfig(LabelledConfig):
    """COX (Huang et al., ICLR 2025), semi-supervised or unsupervised.

    A key whose default is None takes the value that `fidelity` gives it: `rec` the project's
    resolution, `paper` the printed equations, `code` the authors' code with its crashes
    repaired (on unit features, and with a learner from scratch).

    Attributes:
        setting: semi: few labelled samples, paired with known ones. unsup: no label and no pair of
            the unknown modality; `label_fraction`, `label_draw` and `anchors` mean nothing then.
        fidelity: Which reading fills the keys that are None.
        known: Modalities of the data set whose frozen features guide the learner, each a vector
            (K of them, C15); () is every vector modality of the data set.
        known_fraction: Share of the samples with a label whose known features are there beside
            those of the labelled pairs, drawn evenly over the classes (a larger share holds a
            smaller one, and the pairs): 1 but in the sweep of how much in-modal data there is.
        vib_hidden, vib_latent: Sizes of each connection, a variational bottleneck (C3: v is its
            output, in the space of z).
        vib_kl_weight: Weight of KL(w || N(0, I)); neither paper nor code has the term.
        vib_eval_mean: C4. Use w = mu for the heads' refit and other passes; False samples.
        lambda_recon: Weight of the reconstruction; 0 with `heads_on: raw` is the paper's "w/o
            connection".
        recon_grad_scale: C5. Factor on the gradient of the reconstruction that reaches the
            learner: 1 (rec, code) pulls the learner to the mapping too, 0 (paper) detaches.
        recon_reduction: Reconstruction over the d dimensions: mean (rec, code), sum (paper).
        feat_norm: C6. Scale of u and z: l2_sqrtd (rec), l2, none (paper, code).
        heads_on: C1. Train the heads h_k on the mapped features v_k (rec) or on the raw
            features u_k (paper, code; needs `dim` equal to each known feature's size). The
            bootstrap of unsup has raw heads in any case.
        head_weight: Weight of each head's cross-entropy.
        head_refit_epochs: C2. Passes over all known data in which copies of the heads are
            refitted before each refresh; 0 uses the heads as they are.
        select_fraction: T and S: agreement anchors (and in unsup the emergent pairs), as a share of
            the training split.
        anchor_class_quota: C11. Largest share of the anchors that one class may take; None is
            no limit (a class above one half raises an alarm in the log).
        anchors: C7. What guides the exploration: labelled_agreement (rec), labelled (paper),
            agreement (code).
        lambda_agree: C7. Weight of the cross-entropy on agreement anchors; 0 in `paper`, but 1 in
            its unsup, which trains on them alone.
        lambda_explore: Weight of the exploration KL; 0 is the paper's "w/o exploration".
        explore: C8. mean_posterior (rec, code): mean disagreement posterior of the batch against
            a running mean of anchor posteriors; all_pairs (paper): every disagreement sample
            against every anchor, with the printed prefactor over whole sets; knn: against the
            mean posterior of the nearest anchors among the step's batches.
        explore_kl: C9. d_to_a (rec, paper) or a_to_d (code).
        anchor_ema: Decay of that running mean; 1 is the plain mean of all steps (code).
        knn: Neighbours for `explore: knn`.
        warmup_epochs: C12. Epochs before exploration: 5 (rec), 0 (paper; 5 in unsup, where it has a
            warm-up of unstated length), 6 (code).
        refresh: C13. Form agreement and disagreement over the training split at each epoch's
            start (rec, paper), or within each batch by the heads of the moment (code).
        batch_anchors: C7. Anchors of each batch where `refresh` is batch.
        label_draw: balanced over classes (rec, paper) or uniform (code).
        boot_align: C16, unsup. How z is matched to the known features before raw heads judge it:
            standardize (rec) mean and deviation of each dimension, coral mean and covariance, none
            (paper, code).
        boot_epochs: Passes over the known data in which the raw heads of the bootstrap are fitted.
        warm_pairs: C14, unsup. What the connections learn in the warm-up: centroid, the mean of
            u_k over a class onto the mean of z over the samples predicted to be of it, or
            class_random, random pairs of that kind in each step.
        centroid_min: C14. Predicted members below which a class has no centroid.
        im_paired: C10, unsup. The known modalities are paired with one another: one sample i for
            all of them. False: the nearest in each, where their labels agree.
        dist_agg: Distance over the known modalities: mean_norm as printed, rms of concatenations.
        oom_init: C17. scratch; or perceptor_partial (code): the weights of `oom_weights`, of which
            linear layers (but for those into attention) and layer norms start anew; or perceptor:
            all of them, with the projection. What stays may have seen labels or pairs: such a run
            shows the leak, and is no unsupervised result.
        oom_weights: Folder of an export of the same learner, for perceptor_partial and perceptor.
    """

    name: Literal["cox"] = "cox"
    setting: Setting = "semi"
    fidelity: Literal["rec", "paper", "code"] = "rec"
    known: tuple[str, ...] = ()
    known_fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    vib_hidden: int = Field(default=1024, ge=1)
    vib_latent: int = Field(default=256, ge=1)
    vib_kl_weight: float = Field(default=0.0, ge=0.0)
    vib_eval_mean: bool | None = None
    lambda_recon: float = Field(default=1.0, ge=0.0)
    recon_grad_scale: float | None = Field(default=None, ge=0.0)
    recon_reduction: Reduction | None = None
    feat_norm: FeatureNorm | None = None
    heads_on: HeadsOn | None = None
    head_weight: float | None = Field(default=None, ge=0.0)
    head_refit_epochs: int | None = Field(default=None, ge=0)
    select_fraction: float = Field(default=0.1, gt=0.0, le=1.0)
    anchor_class_quota: float | None = Field(default=None, gt=0.0, le=1.0)
    anchors: Anchors | None = None
    lambda_agree: float | None = Field(default=None, ge=0.0)
    lambda_explore: float = Field(default=1.0, ge=0.0)
    explore: Explore | None = None
    explore_kl: Direction | None = None
    anchor_ema: float | None = Field(default=None, ge=0.0, le=1.0)
    knn: int = Field(default=5, ge=1)
    warmup_epochs: int | None = Field(default=None, ge=0)
    refresh: Refresh | None = None
    batch_anchors: int = Field(default=8, ge=1)
    label_draw: LabelDraw | None = None
    boot_align: BootAlign | None = None
    boot_epochs: int = Field(default=20, ge=1)
    warm_pairs: WarmPairs = "centroid"
    centroid_min: int = Field(default=5, ge=1)
    im_paired: bool = True
    dist_agg: Aggregate = "mean_norm"
    oom_init: OomInit = "scratch"
    oom_weights: str | None = None

    def choices(self) -> CoxChoices:
        """The open decisions: what is set here, else what `fidelity` says."""
        own = {k: getattr(self, k) for k in CoxChoices.model_fields}
        preset = UNSUPERVISED[self.fidelity] if self.setting == "unsup" else {}
        return PRESETS[self.fidelity].model_copy(
            update={**preset, **{k: v for k, v in own.items() if v is not None}}
        )

    def resolved(self) -> CoxConfig:
        """The same configuration with no key left to `fidelity`."""
        return self.model_copy(update=self.choices().model_dump())

    @property
    def connection(self) -> VIBConfig:
        """Sizes of each connection."""
        return VIBConfig(hidden=self.vib_hidden, latent=self.vib_latent)

    def build(self, context: Context) -> Cox | CoxUnsupervised:
        """Make the method for a run."""
        from outmodal.train.methods.cox import Cox
        from outmodal.train.methods.cox_unsup import CoxUnsupervised

        return CoxUnsupervised(context, self) if self.setting == "unsup" else Cox(context, self)
