"""Classification by what was trained for it: a run's classifier, an export's, or class means."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from outmodal.errors import UserError
from outmodal.train.classes import among, difference, subset_settings
from outmodal.train.combinations import label_of
from outmodal.train.evaluation import LocalPasses
from outmodal.train.intervals import Bootstrap
from outmodal.train.methods import Align, Method
from outmodal.train.methods.align_report import class_means
from outmodal.train.methods.fusion import Fusion
from outmodal.train.methods.supervised import Supervised
from outmodal.train.representations import Encoded, Encoder
from outmodal.train.results import Evaluation, Of, Table, classified, five_best
from outmodal.train.retrieval import TILE, Score, score_by
from outmodal.train.shares import by_rows
from outmodal.train.sources import RunSource

PLAIN = Bootstrap()


def classify_task(
    encoder: Encoder, split: str, bootstrap: Bootstrap = PLAIN, most: int = 0
) -> Evaluation:
    """Classify a split with the encoder's own classifier.

    Returns:
        "top1", "top5", "mean_per_class" over the samples that have the modality and a class, each
        class's accuracy, and the confusion matrix; of a run also its method's own numbers, without
        intervals.

    Raises:
        UserError: There is no classifier, the data set has other classes, or no sample of the
            split has the modality and a class.
    """
    table, modality = Table(bootstrap), classifier_of(encoder)
    encoded = encoder.encode(split, [modality], most=most)
    rows = labelled_rows(encoded, modality, split)
    assert encoded.best is not None
    names, of = encoder.dataset.manifest.classes, Of(modality=modality)
    classified(table, encoded.best[rows], encoded.label[rows], names, of)
    return table.done(int(rows.sum()), **subset_settings(encoder.dataset.manifest))


def classify_run(
    encoder: Encoder, train: str, split: str, bootstrap: Bootstrap = PLAIN
) -> Evaluation:
    """Evaluate a run as it does itself: by its classifier, or for modalities that were aligned by
    the pairs' retrieval and class means ("A_to_B/zero_shot"); with intervals where samples are at
    hand. On another data set, without the numbers that only the method itself can tell.

    Args:
        encoder: Of a run, with `split` as the method's evaluation split.
        train: Split that class means are of.
        split: Split to evaluate.
        bootstrap: Of the intervals.
    """
    source = encoder.source
    assert isinstance(source, RunSource)
    method, table = source.method, Table(bootstrap)
    samples = encoder.dataset.split(split).samples
    if source.classifies is not None:
        modality = classifier_of(encoder)
        encoded = encoder.encode(split, [modality])
        rows = labelled_rows(encoded, modality, split)
        assert encoded.best is not None
        names, of = encoder.dataset.manifest.classes, Of(modality=modality)
        classified(table, encoded.best[rows], encoded.label[rows], names, of)
    elif isinstance(method, Align):
        _aligned(table, encoder, method, train, split)
    elif isinstance(method, Fusion) and source.own:
        _fused(table, encoder, method, split)
    for name, value in (_own(encoder, method) if source.own else {}).items():
        if not table.has(name):
            table.number(name, value)
    return table.done(samples, **subset_settings(encoder.dataset.manifest))


def classifier_of(encoder: Encoder) -> str:
    """The modality that the encoder classifies.

    Raises:
        UserError: None, or with classes that are not the data set's.
    """
    source = encoder.source
    if source.classifies is None:
        raise UserError(
            f"{source.name} has no classifier: train one on its representations with --task probe"
        )
    manifest = encoder.dataset.manifest
    differ = difference(manifest.classes, source.classes)
    if differ:
        raise UserError(
            f"data set '{manifest.name}' {differ} ({source.name}): evaluate on a data set with the "
            "same classes (sets of ImageNet's are built --like it), or representations with "
            "--task probe or knn"
        )
    return source.classifies


def labelled_rows(encoded: Encoded, modality: str, split: str) -> Tensor:
    """[N] bool: samples with the modality and a class; UserError where there is none."""
    rows = encoded.present[modality] & (encoded.label >= 0)
    if not bool(rows.any()):
        raise UserError(
            f"split '{split}' has no labelled sample with '{modality}': choose another split, or "
            "--task retrieve"
        )
    return rows


def _own(encoder: Encoder, method: Method) -> dict[str, float]:
    """What the method says of itself, where it says more than its classifier does."""
    if isinstance(method, Align) or type(method).evaluate is Supervised.evaluate:
        return {}
    method.to("cpu")
    passes = LocalPasses(method, encoder.dataset, encoder.source.inputs, encoder.data)
    try:
        return method.evaluate(passes)
    finally:
        passes.close()
        method.to(encoder.device)


def _aligned(table: Table, encoder: Encoder, method: Align, train: str, split: str) -> None:
    """See `Align.evaluate`: the same numbers, with intervals."""
    encoded = encoder.encode(split)
    means = (
        _class_means(encoder, train) if method.config.prototypes and method.context.classes else {}
    )
    for a, b in permutations(encoder.modalities, 2):
        both = encoded.having([a, b])
        if not bool(both.any()):
            continue
        units = {m: encoded.unit[m][both] for m in (a, b)}
        label, of, way = encoded.label[both], Of(combination=f"{a}_to_{b}"), f"{a}_to_{b}"
        known = label >= 0
        first = _best(score_by(method.score, units, (a,), b), len(label))
        every = torch.arange(len(label), device=label.device)
        table.mean(f"{way}/r1_instance", "r1_instance", first == every, of)
        table.mean(f"{way}/r1_class", "r1_class", (label[first] == label)[known], of)
        if b in means:
            with torch.no_grad():
                guess = method.score({a: units[a]}, means[b], b).argmax(dim=1)
            table.mean(f"{way}/zero_shot", "zero_shot", (guess == label)[known], of)


def _fused(table: Table, encoder: Encoder, method: Fusion, split: str) -> None:
    """The classes that all modalities together say, with intervals; see `Fusion.evaluate`."""
    if method.metric != "top1":
        return
    encoded = encoder.encode(split)
    r = dict(encoded.representation)
    for m in encoder.modalities:
        blank = encoder.blank(m)[0]
        r[m] = torch.where(encoded.present[m][:, None], r[m], blank)
    with torch.no_grad():
        best = five_best(among(method.fused(r), encoder.dataset.manifest))
    rows = torch.stack(list(encoded.present.values())).any(dim=0) & (encoded.label >= 0)
    if bool(rows.any()):
        names = encoder.dataset.manifest.classes
        of = Of(combination=label_of(encoder.modalities))
        classified(table, best[rows], encoded.label[rows], names, of)


def _best(score: Score, count: int) -> Tensor:
    """[N] the best candidate of every query."""
    step, every = max(1, TILE // count), torch.arange(count)

    def part(rows: range) -> list[Tensor]:
        pieces = torch.split(every[rows.start : rows.stop], step)
        return [torch.cat([score(some, every).argmax(dim=1) for some in pieces])]

    return by_rows(count, step, part)[0]


def _class_means(encoder: Encoder, train: str) -> dict[str, Tensor]:
    """Modality -> [C, d] mean unit embedding of each class on the training split."""
    encoded = encoder.encode(train)
    count = len(encoder.dataset.manifest.classes)
    return {
        m: class_means(encoded.unit[m], torch.where(encoded.present[m], encoded.label, -1), count)
        for m in encoder.modalities
    }
