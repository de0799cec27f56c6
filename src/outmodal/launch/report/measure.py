"""What a run's newest checkpoint does with the evaluation split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outmodal.data.batch import StreamSpec
from outmodal.data.manifest import Dataset
from outmodal.errors import UserError
from outmodal.train import diagnostics
from outmodal.train.checkpoint import CheckpointStore
from outmodal.train.evaluation import LocalPasses
from outmodal.train.intervals import Score, score
from outmodal.train.methods import Align, CoxBase, Synergy
from outmodal.train.methods.base import Method, Passes
from outmodal.train.methods.cox_sets import judge_all
from outmodal.train.methods.supervised import Supervised
from outmodal.train.methods.synergy_report import latents_of
from outmodal.train.retrieval import TILE, score_by
from outmodal.train.run import RunPlan, restore_method

KS = (1, 5, 10)
HELPER = "helper's targets"
"""What stands beside the latents of a synergy run."""

_MMD_SAMPLES = 1000


@dataclass(frozen=True)
class Gap:
    """How far two modalities lie apart on the same split.

    Attributes:
        first, second: Modalities.
        distance: Between the means of their unit vectors, 0..2.
        mmd: See `diagnostics.mmd`.
    """

    first: str
    second: str
    distance: float
    mmd: float


@dataclass(frozen=True)
class Measured:
    """A run's newest checkpoint on its evaluation split.

    Attributes:
        checkpoint: Its name.
        split: Name of the split.
        samples, of: Samples that were measured, of how many.
        classes: Class names.
        label: [N] class, -1 where unknown.
        scores: Means with intervals.
        per_class: Accuracy of each class, where there is a classifier.
        confusion: [C, C] counts, rows are true classes; None without a classifier.
        features: Modality -> [N, d]; of what a sample lacks the row means nothing.
        present: Modality -> [N] bool.
        gaps: Between each two modalities.
    """

    checkpoint: str
    split: str
    samples: int
    of: int
    classes: Sequence[str]
    label: Tensor
    scores: Sequence[Score] = ()
    per_class: Sequence[Score] = ()
    confusion: NDArray[np.int64] | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    present: Mapping[str, Tensor] = field(default_factory=dict)
    gaps: Sequence[Gap] = ()


def measure(plan: RunPlan, most: int) -> Measured:
    """Run the newest checkpoint over the evaluation split.

    Args:
        plan: The run.
        most: Samples to use at most, a seeded draw; 0 is all.

    Raises:
        UserError: No complete checkpoint, no data, or a method without logits or embeddings.
    """
    path = CheckpointStore(plan.out / "checkpoints").newest()
    if path is None:
        raise UserError("there is no complete checkpoint yet")
    method, transforms, dataset = restore_method(plan)
    passes = LocalPasses(method, dataset, transforms, plan.data)
    torch.manual_seed(plan.seed)
    try:
        return _measured(method, dataset, passes, path.name, plan, most)
    finally:
        passes.close()


def _measured(
    method: Method, dataset: Dataset, passes: Passes, name: str, plan: RunPlan, most: int
) -> Measured:
    split = plan.data.eval_split
    truth = method.context.labels[split]
    select = _drawn(len(truth), most, plan.seed)
    label = torch.from_numpy(truth if select is None else truth[select])
    frame = Measured(name, split, len(label), len(truth), dataset.manifest.classes, label)
    if isinstance(method, Supervised):
        return _classified(frame, method, passes, select)
    if isinstance(method, Align):
        return _aligned(frame, method, passes, select)
    return _other(frame, method, passes, select)


def _drawn(count: int, most: int, seed: int) -> NDArray[np.int64] | None:
    if not most or count <= most:
        return None
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def _classified(
    frame: Measured, method: Supervised, passes: Passes, select: NDArray[np.int64] | None
) -> Measured:
    batch, unknown = method.context.batch, method.unknown
    out = passes.infer("z", StreamSpec("report", frame.split, (unknown,), batch, select))
    features, present = {unknown: out["z"].float()}, {unknown: out["present"].bool()}
    if isinstance(method, CoxBase):
        spec = StreamSpec("report_known", frame.split, method.known, batch, select)
        known = passes.infer("mapped", spec)
        features |= {m: known[f"mapped:{m}"].float() for m in method.known}
        present |= {m: known[f"present:{m}"].bool() for m in method.known}
    if isinstance(method, Synergy):
        held = latents_of(method, passes, frame.split, select)
        targets = held.z.new_zeros(len(frame.label), held.target.shape[1])
        targets[held.having] = held.target
        features[HELPER], present[HELPER] = targets, held.having
    rows = present[unknown] & (frame.label >= 0)
    logits, label = out["logits"][rows], frame.label[rows]
    hits = (logits.argmax(dim=1) == label).numpy()
    more = _of_judges(method, out["z"][rows], logits, label) if isinstance(method, CoxBase) else []
    return _with(
        frame,
        [*_top_k(logits, label), *more],
        _each_class(hits, label, frame.classes),
        _confusion(logits.argmax(dim=1), label, len(frame.classes)),
        features,
        present,
    )


def _aligned(
    frame: Measured, method: Align, passes: Passes, select: NDArray[np.int64] | None
) -> Measured:
    spec = StreamSpec("report", frame.split, method.modalities, method.context.batch, select)
    out = passes.infer("embedding", spec)
    features = {m: out[f"embedding:{m}"].float() for m in method.modalities}
    present = {m: out[f"present:{m}"].bool() for m in method.modalities}
    scores = []
    for a, b in permutations(method.modalities, 2):
        both = present[a] & present[b]
        units = {m: features[m][both] for m in (a, b)}
        scores += _retrieved(method, units, a, b, frame.label[both])
    return _with(frame, scores, [], None, features, present)


def _other(
    frame: Measured, method: Method, passes: Passes, select: NDArray[np.int64] | None
) -> Measured:
    """Of a method that this page knows nothing about: embeddings of its learners, and the accuracy
    of its classifier, as far as it answers to the usual names of `Method.infer`."""
    features, present = {}, {}
    scores: list[Score] = []
    for m in method.context.learners:
        spec = StreamSpec(f"report_{m}", frame.split, (m,), method.context.batch, select)
        out = _asked(passes, f"embedding:{m}", spec)
        if "embedding" in out:
            features[m], present[m] = out["embedding"].float(), out["present"].bool()
        out = _asked(passes, "logits", spec) if len(method.context.learners) == 1 else {}
        if "logits" in out:
            rows = out["present"].bool() & (frame.label >= 0)
            scores = _top_k(out["logits"][rows], frame.label[rows])
    if not features and not scores:
        raise UserError("its method gives neither logits nor embeddings")
    return _with(frame, scores, [], None, features, present)


def _asked(passes: Passes, what: str, spec: StreamSpec) -> dict[str, Tensor]:
    """What a method gives under a name; nothing where it does not know it."""
    try:
        return passes.infer(what, spec)
    except (ValueError, KeyError, UserError):
        return {}


def _with(
    frame: Measured,
    scores: Sequence[Score],
    per_class: Sequence[Score],
    confusion: NDArray[np.int64] | None,
    features: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
) -> Measured:
    return Measured(
        frame.checkpoint,
        frame.split,
        frame.samples,
        frame.of,
        frame.classes,
        frame.label,
        scores,
        per_class,
        confusion,
        features,
        present,
        gaps(features, present),
    )


def _top_k(logits: Tensor, label: Tensor) -> list[Score]:
    found = []
    for k in (1, 5):
        best = logits.topk(min(k, logits.shape[1]), dim=1).indices
        hits = (best == label[:, None]).any(dim=1)
        found.append(score(f"top{k}", hits.numpy()))
    return [s for s in found if s is not None]


def _of_judges(method: CoxBase, z: Tensor, logits: Tensor, label: Tensor) -> list[Score]:
    """Figure 6 with intervals; nothing before the first refresh."""
    if not method.judges or not len(z):
        return []
    own = logits.argmax(dim=1)
    agree = judge_all(method.judges, z, own).agree
    hits = own == label
    found = [
        score("agreement_rate", agree.numpy()),
        score("accuracy_agreement", hits[agree].numpy()),
        score("accuracy_disagreement", hits[~agree].numpy()),
    ]
    return [s for s in found if s is not None]


def _each_class(hits: NDArray[np.bool_], label: Tensor, classes: Sequence[str]) -> list[Score]:
    found = [score(name, hits[(label == c).numpy()]) for c, name in enumerate(classes)]
    return [s for s in found if s is not None]


def _confusion(predicted: Tensor, label: Tensor, classes: int) -> NDArray[np.int64]:
    cells = torch.bincount(label * classes + predicted, minlength=classes * classes)
    return cells.view(classes, classes).numpy()


def _retrieved(
    method: Align, units: Mapping[str, Tensor], a: str, b: str, label: Tensor
) -> list[Score]:
    """Retrieval of each sample's partner among all; intervals over queries, the gallery is kept."""
    count = len(label)
    if not count:
        return []
    ask = score_by(method.score, units, (a,), b)
    every = torch.arange(count)
    pieces = torch.split(every, max(1, TILE // count))
    places, firsts = zip(*[_places(ask(some, every), some) for some in pieces], strict=True)
    place, first = torch.cat(places), torch.cat(firsts)
    way, known = f"{a}_to_{b}", label >= 0
    found = [score(f"{way}/r{k}_instance", (place < k).numpy()) for k in KS]
    found.append(score(f"{way}/map_instance", (1 / (place.double() + 1)).numpy()))
    found.append(score(f"{way}/r1_class", (label[first] == label)[known].numpy()))
    return [s for s in found if s is not None]


def _places(scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of some queries: place of the partner (of equals the earlier comes first), best index."""
    own = scores.gather(1, rows[:, None])
    earlier = torch.arange(scores.shape[1])[None, :] < rows[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(dim=1), scores.argmax(dim=1)


def gaps(features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> list[Gap]:
    """The gap between each two modalities (Liang et al., "Mind the Gap", NeurIPS 2022), and the
    maximum mean discrepancy; without modalities that no sample has or whose sizes differ."""
    held = {m: z[present[m]] for m, z in features.items() if bool(present[m].any())}
    return [
        Gap(
            a,
            b,
            diagnostics.modality_gap(held[a], held[b]),
            diagnostics.mmd(held[a], held[b], limit=_MMD_SAMPLES),
        )
        for a, b in combinations(held, 2)
        if held[a].shape[1] == held[b].shape[1]
    ]
