"""The arguments of `outmodal eval`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from outmodal.train.combinations import Missing, Which
from outmodal.train.encoder_tasks import POOL, Directions
from outmodal.train.intervals import DRAWS
from outmodal.train.judging import Judge
from outmodal.train.knn import KnnConfig
from outmodal.train.missing import RATES
from outmodal.train.probing import ProbeConfig

Task = Literal[
    "classify", "retrieve", "probe", "knn", "combinations", "missing", "corruptions", "latents"
]

OF_A_RUN = "outmodal eval runs/cox --data DATASET"
OF_ENCODERS = "outmodal eval runs/align --task combinations --probe.epochs 20"
OF_PERCEPTORS = "outmodal eval --perceptor image=CLIP --data DATASET --task classify"


@dataclass(frozen=True)
class EvalArgs:
    """Evaluate a run, one or several exports, or perceptors alone.

    classify: the classifier, or what the run trained for (alignment), or class names for
    perceptors. probe, knn: frozen representations. combinations: a probe for every combination of
    modalities. missing: a modality is taken away at test time. corruptions: damaged inputs at five
    severities; of a data set that holds them ready made (ImageNet-C) with mCE. retrieve: between
    modalities, by the objective's own score. latents: distances between the latents of synergy
    runs. Every number has a 95 % bootstrap interval; the result of a run is also written to
    RUN/eval/TASK-SPLIT.json. Under torchrun or srun the processes share the work; the result is
    the same."""

    what: tuple[Path, ...] = ()
    """Folder of a run, or folders of exports (one a modality); none where perceptors are named."""
    data: str = ""
    """Data set; a run's own where empty."""
    split: str = ""
    """Split; the run's evaluation split where empty, "test" for exports and perceptors, the only
    one of a data set that has no other."""
    train_split: str = ""
    """Split that probes and neighbours learn from; the run's own where empty, "train" else."""
    task: Task = "classify"
    """What to evaluate."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """The network of probe, combinations, missing and corruptions; --probe.kind linear is one
    layer."""
    knn: KnnConfig = field(default_factory=KnnConfig)
    """knn: neighbours, and the temperature of their votes."""
    subsets: Which = "all"
    """combinations: every one, or single modalities and all of them."""
    missing: Missing = "separate"
    """combinations: a network for each; or one of all modalities, with the others filled."""
    rates: tuple[float, ...] = RATES
    """missing: shares of the samples that lack something, of the sweep."""
    modality: str = ""
    """corruptions: what is damaged, where there are several."""
    corruptions: tuple[str, ...] = ()
    """corruptions: which; all of the modality's kind where none is named."""
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    """corruptions: how strong."""
    judge: Judge = "auto"
    """corruptions, missing: what judges damaged or missing inputs: the classifier that was trained
    with the encoders (missing: of all modalities together), or a probe."""
    directions: Directions = "rest"
    """retrieve: all other modalities together ask for each one, or each asks for each other."""
    query: tuple[str, ...] = ()
    """retrieve: modalities that ask, where it is these only; wants --target."""
    target: str = ""
    """retrieve: the modality that --query looks for."""
    pool: int = POOL
    """retrieve: also among so many candidates a query; 0 leaves it out."""
    against: str = ""
    """latents: the same run at alpha 0."""
    proxy: str = ""
    """latents: a run whose latents stand for an ideal encoder's (level 3); gives a proxy of
    alpha*."""
    most: int = 0
    """corruptions, retrieve: samples of the split at most, at even distances; 0 is all."""
    seed: int = 0
    """Of what is drawn: resamples, missing modalities, corruptions, pools."""
    draws: int = DRAWS
    """Resamples of the bootstrap; 0 leaves the intervals out."""
    csv: str = ""
    """Also write one row for each number to this file."""
    perceptor: tuple[str, ...] = ()
    """As in `outmodal embed`. classify: the modality's, and a second one for the prompts unless
    the first has a text side; other tasks: one for each modality."""
    template: tuple[str, ...] = ()
    """What class names are put into, as "a photo of a {}."; averaged. A set for the kind of
    modality where none is given."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the perceptors."""
    compile: bool = False
    """Whether perceptors go through torch.compile."""
    batch: int = 256
    """Samples that exports and perceptors encode together."""
    workers: int = 0
    """Processes that read for exports and perceptors."""
    nproc: int = 1
    """Processes to start on this machine, one a GPU where there are GPUs. On the CPU each has one
    thread, so that results do not depend on their number."""
