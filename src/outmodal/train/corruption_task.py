"""What is lost when inputs are damaged: corruptions at five severities, against clean inputs.

As Hendrycks and Dietterich measure it ("Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019): the error at each severity, its mean over severities,
and the mean over corruptions; relative figures are against the same encoder on clean inputs, where
they divide by a reference network's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from outmodal.data.corruptions import SEVERITIES, Corrupted, corruptions_of
from outmodal.errors import UserError
from outmodal.train.classes import subset_settings
from outmodal.train.classifying import classifier_of, labelled_rows
from outmodal.train.combinations import Split
from outmodal.train.encoder_tasks import learnable
from outmodal.train.intervals import Bootstrap
from outmodal.train.judging import Judge
from outmodal.train.probing import (
    ProbeConfig,
    answers,
    concatenated,
    fit,
    judged,
    predicted,
    require_answers,
)
from outmodal.train.published import corruption_errors, mean_error
from outmodal.train.representations import Encoded, Encoder
from outmodal.train.results import Evaluation, Of, Table

PLAIN = Bootstrap()
ON_THE_FLY = (
    "these corruptions were made while reading, not taken from ImageNet-C (frost is synthetic, and "
    "so are all draws): ce_on_the_fly and mce_on_the_fly are no published figures"
)

Judged = Callable[[Encoded], tuple[str, Tensor]]
"""Returns the metric's name and hits or squared errors, of the same samples every time."""


def corruption_task(
    encoder: Encoder,
    train: str,
    test: str,
    config: ProbeConfig,
    *,
    modality: str = "",
    names: Sequence[str] = (),
    severities: Sequence[int] = SEVERITIES,
    judge: Judge = "auto",
    seed: int = 0,
    most: int = 0,
    bootstrap: Bootstrap = PLAIN,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Accuracy (or mean squared error) on damaged inputs of one modality.

    Args:
        encoder: Encoders.
        train, test: Splits; the first is for a probe.
        config: The probe, on the representations of the damaged modality alone.
        modality: What is damaged; "" is the one that has a classifier, or the only one.
        names: Corruptions; () is all of the modality's kind.
        severities: Of 1..5.
        judge: What judges.
        seed: Decides, with a sample's key, what is drawn.
        most: Samples of the test split at most; 0 is all.
        bootstrap: Of the intervals.
        progress: Called with (passes done, in all).

    Returns:
        "clean/top1", "NAME/3/top1", "NAME/mean/top1" over severities, "NAME/relative_error" (mean
        error over severities / error on clean inputs); "mean/top1" and "mean/relative_error" over
        all corruptions. Of a probe "accuracy" or "mse" in place of "top1"; of a regression the
        relative error is that of the squared errors.

    Raises:
        UserError: No such modality, corruption or severity, or nothing that could judge.
    """
    damaged = _modality(encoder, modality)
    spec = encoder.dataset.modality(damaged)
    wanted = corruptions_of(spec.kind, tuple(names))
    _check(severities)
    judgement = _judgement(encoder, train, test, damaged, config, judge)
    own, total = encoder.source.inputs[damaged], 1 + len(wanted) * len(severities)

    def passed(done: int, name: str = "", severity: int = 0) -> tuple[str, Tensor]:
        if progress is not None:
            progress(done, total)
        changed = {damaged: Corrupted(own, spec, name, severity, seed)} if name else None
        return judgement(encoder.encode(test, [damaged], changed=changed, most=most))

    metric, clean = passed(0)
    found: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for i, (name, severity) in enumerate((n, s) for n in wanted for s in severities):
        found[name].append(passed(i + 1, name, severity)[1])
    table = Table(bootstrap)
    _rows(table, metric, damaged, clean, found, severities)
    settings = {"judge": judge, "seed": seed, "severities": list(severities), "modality": damaged}
    manifest = encoder.dataset.manifest
    if manifest.wnids is not None and metric != "mse":
        settings |= _relative_to_alexnet(table, found, severities)
    return table.done(len(clean), **settings, **subset_settings(manifest))


def _relative_to_alexnet(
    table: Table, found: Mapping[str, Sequence[Tensor]], severities: Sequence[int]
) -> dict[str, str]:
    """Of a data set in ImageNet's classes: what would be mCE, were these ImageNet-C's pictures."""
    errors = {
        name: {s: float(1.0 - hits.mean()) for s, hits in zip(severities, held, strict=True)}
        for name, held in found.items()
    }
    ce = corruption_errors(errors)
    for name, value in ce.items():
        table.number(f"{name}/ce_on_the_fly", value, Of(corruption=name))
    mce = mean_error(ce)
    if mce is not None:
        table.number("mce_on_the_fly", mce, Of(corruption="mean"))
    return {"note": ON_THE_FLY} if ce else {}


def _rows(
    table: Table,
    metric: str,
    modality: str,
    clean: Tensor,
    found: dict[str, list[Tensor]],
    severities: Sequence[int],
) -> None:
    def error(values: Tensor) -> Tensor:
        return values if metric == "mse" else 1.0 - values

    table.mean(f"clean/{metric}", metric, clean, Of(modality, severity=0))
    means = []
    for name, held in found.items():
        for severity, values in zip(severities, held, strict=True):
            of = Of(modality, corruption=name, severity=severity)
            table.mean(f"{name}/{severity}/{metric}", metric, values, of)
        mean, of = torch.stack(held).mean(dim=0), Of(modality, corruption=name)
        table.mean(f"{name}/mean/{metric}", metric, mean, of)
        ratio = table.bootstrap.ratio("relative_error", error(mean), error(clean))
        table.add(f"{name}/relative_error", "relative_error", ratio, of)
        means.append(mean)
    mean, of = torch.stack(means).mean(dim=0), Of(modality, corruption="mean")
    table.mean(f"mean/{metric}", metric, mean, of)
    ratio = table.bootstrap.ratio("relative_error", error(mean), error(clean))
    table.add("mean/relative_error", "relative_error", ratio, of)


def _judgement(
    encoder: Encoder, train: str, test: str, modality: str, config: ProbeConfig, judge: Judge
) -> Judged:
    able = encoder.source.classifies == modality
    if judge == "classifier" or (judge == "auto" and able):
        classifier_of(encoder)
        if not able:
            raise UserError(
                f"{encoder.source.name} has a classifier of '{encoder.source.classifies}', not of "
                f"'{modality}': use --judge probe"
            )
        return lambda encoded: _by_classifier(encoded, modality, test)
    learnt = learnable(encoder, train, config.predict)
    usable = learnt.usable([modality])
    require_answers("training", usable)
    network = fit(concatenated(learnt.encoded, [modality], config.on), usable, config)
    classes = len(encoder.dataset.manifest.classes)

    def by_probe(encoded: Encoded) -> tuple[str, Tensor]:
        asked = Split(encoded, answers(encoded, test, classes, config.predict))
        held = asked.usable([modality])
        out = predicted(network, concatenated(encoded, [modality], config.on), held)
        return held.metric, judged(out, held)

    return by_probe


def _by_classifier(encoded: Encoded, modality: str, split: str) -> tuple[str, Tensor]:
    rows = labelled_rows(encoded, modality, split)
    assert encoded.best is not None
    return "top1", (encoded.best[rows][:, 0] == encoded.label[rows]).double()


def _modality(encoder: Encoder, asked: str) -> str:
    if asked:
        encoder.require(asked)
        return asked
    if encoder.source.classifies is not None:
        return encoder.source.classifies
    if len(encoder.modalities) > 1:
        raise UserError(
            f"{encoder.source.name} encodes {', '.join(encoder.modalities)}: name the one to "
            "damage with --modality"
        )
    return encoder.modalities[0]


def _check(severities: Sequence[int]) -> None:
    if not severities:
        raise UserError("--severities is empty: give some of 1 2 3 4 5")
    for severity in severities:
        if severity not in SEVERITIES:
            raise UserError(f"--severities: there is no severity {severity}: give some of 1..5")
