"""What the rows of a column read: the user's data set, or one with frozen features in it.

A table of kind `unknown` wants features of the known modalities, and its rows `own` want one of the
unknown; one of kind `directions` wants an encoder of the helper. The user names encoders with
--perceptors. Where none is named for a modality, one is trained here: known modalities are aligned
with one another, and a single one learns the classes. No encoder that is trained here sees the
modality that the column is about, but that of the rows `own`, which learns from all pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outmodal.data.manifest import Dataset
from outmodal.errors import UserError, nearest
from outmodal.launch.config import RunConfig, adapted, set_keys
from outmodal.launch.perceptor_names import perceptor_config
from outmodal.launch.reproduce.columns import Column
from outmodal.launch.reproduce.learners import learner_for
from outmodal.launch.reproduce.preparations import (
    Encoders,
    Features,
    Preparation,
    encoders,
    features,
)
from outmodal.launch.reproduce.table import TableSpec
from outmodal.models.export_folder import read_info
from outmodal.models.perceptors import ExportedPerceptor, PerceptorConfig

SIZE = 128
"""Numbers of the features of encoders that are trained here."""

STORED = "stored"
"""What --perceptors calls vectors that are features already."""

HELPER_NOISE = {"audio": 0.0316}
"""Kind of the helper's modality -> deviation of the normal noise on other samples' inputs that it
hears: the paper's variance is 1e-3 for sounds, and pictures have none (Synergy, Table 5)."""

_RECIPE = "quickstart-align"  # optimizer and length of the encoders that are trained here


@dataclass(frozen=True)
class Feed:
    """What rows read.

    Attributes:
        path: Data set.
        keys: Keys of the method that follow from the column, where the method has them.
        needs: What must be made before.
    """

    path: str
    keys: dict[str, Any] = field(default_factory=dict)
    needs: tuple[Preparation, ...] = ()


@dataclass(frozen=True)
class Supply:
    """Where feeds of a table come from.

    Attributes:
        dataset: The user's.
        base: The recipe's configuration, with what the user changed: data and learners.
        out: Folder of the tables.
        named: Encoders that the user names.
        epochs: Of those that are trained here.
    """

    dataset: Dataset
    base: RunConfig
    out: Path
    named: Mapping[str, PerceptorConfig | None]
    epochs: int

    @property
    def path(self) -> str:
        """The user's data set."""
        return str(self.dataset.root.absolute())

    def learner(self, modality: str) -> dict[str, Any]:
        """The recipe's learner of a modality, or one for its kind."""
        for cfg in self.base.learners:
            if cfg.modality == modality:
                return cfg.model_dump(mode="json")
        return learner_for(modality, self.dataset.modality(modality))


def read_perceptors(
    texts: Sequence[str], table: TableSpec, dataset: Dataset
) -> dict[str, PerceptorConfig | None]:
    """Encoders by modality, of --perceptors.

    Raises:
        UserError: The table has no use for them, a modality that the data set does not have or that
            is named twice, or "stored" of one that is no vector.
    """
    if texts and table.columns not in ("unknown", "directions"):
        raise UserError(
            "--perceptors: this table trains every encoder itself: leave it out (tables of COX and "
            "Synergy take frozen ones)"
        )
    found: dict[str, PerceptorConfig | None] = {}
    for text in texts:
        modality, config = _named(text, dataset)
        if modality in found:
            raise UserError(f"--perceptors names two encoders of '{modality}': leave one out")
        found[modality] = config
    return found


def _named(text: str, dataset: Dataset) -> tuple[str, PerceptorConfig | None]:
    """A modality and its encoder; None where its vectors are taken as they are."""
    modality, _, place = text.partition("=")
    config: Any = None if place == STORED else perceptor_config(text)
    if isinstance(config, ExportedPerceptor):
        read_info(Path(config.path).expanduser())
    if config is not None:
        modality = config.reads()
        path = Path(config.path).expanduser()
        config = config.model_copy(update={"path": str(path.absolute())} if path.exists() else {})
    known = dataset.manifest.modalities
    if modality not in known:
        raise UserError(
            f"--perceptors {text}: {dataset.root} has no modality '{modality}'"
            f"{nearest(modality, known)}; it has {', '.join(known)}"
        )
    if config is None and known[modality].kind != "vector":
        raise UserError(
            f"--perceptors {text}: '{modality}' is of kind {known[modality].kind}, and only "
            f"vectors can be taken as they are: name an encoder, {modality}=FOLDER"
        )
    return modality, config


def column_feed(table: TableSpec, column: Column, supply: Supply) -> Feed:
    """What the rows of a column read, other than rows `own`."""
    if table.columns == "unknown":
        return _known_feed(column, supply)
    if table.columns == "directions":
        return _helper_feed(column, supply)
    return Feed(supply.path, {"modalities": list(column.modalities)})


def own_feed(column: Column, supply: Supply) -> Feed | str:
    """What rows `own` read, or why there is nothing for them.

    Its encoder and that of the sentences are of one space: both are the user's, or both are trained
    here, by aligning all modalities of the column.
    """
    text = _text_of(column, supply)
    if not text:
        return "no modality of kind text, so nothing can read the classes' sentences"
    wanted = dict.fromkeys((column.learned, text))
    given = {m: supply.named.get(m) for m in wanted if m in supply.named}
    needs: tuple[Preparation, ...] = ()
    if not given:
        every = tuple(m for m in supply.dataset.manifest.modalities if m in column.modalities)
        trained = _trained(supply, every)  # in one order, so that all columns share it
        needs, configs = (trained,), {m: _exported(trained, m) for m in wanted}
    elif len(given) < len(wanted):
        lacking = ", ".join(m for m in wanted if m not in given)
        return f"--perceptors names no encoder of {lacking} into the same space"
    elif None in given.values():
        return "its stored vectors come without the encoder of the sentences"
    else:
        configs = {m: config for m, config in given.items() if config is not None}
    made = _embedded(supply, f"{column.name}-own", {column.learned: configs[column.learned]}, ())
    prompts = configs[text].model_dump(mode="json")
    keys = {"unknown": column.learned, "prompts": prompts}
    return Feed(str(made.data), keys, (*needs, made))


def _known_feed(column: Column, supply: Supply) -> Feed:
    """Features of the known modalities, the unknown one as it is."""
    needs, configs, stored = _encoders_of(column.known, supply)
    keys: dict[str, Any] = {"unknown": column.learned, "known": list(column.known)}
    keys["dim"] = _size(configs, stored, supply)
    if not configs:
        return Feed(supply.path, keys)
    made = _embedded(supply, column.name, configs, (*stored, column.learned))
    return Feed(str(made.data), keys, (*needs, made))


def _helper_feed(column: Column, supply: Supply) -> Feed:
    """Targets of the helper: what it says of sentences, or its features of other samples."""
    helper = column.known[0]
    needs, configs, stored = _encoders_of((helper,), supply)
    keys: dict[str, Any] = {"unknown": column.learned, "dim": _size(configs, stored, supply)}
    if supply.dataset.modality(helper).kind == "text" and configs:
        keys |= {"targets": "text", "helper": configs[helper].model_dump(mode="json")}
        return Feed(supply.path, keys, needs)
    keys |= {"targets": "samples", "guide": helper}
    if stored:
        return Feed(supply.path, keys)
    noisy = {helper: _with_noise(configs[helper], supply.dataset.modality(helper).kind)}
    made = _embedded(supply, column.name, noisy, (column.learned,))
    return Feed(str(made.data), keys, (*needs, made))


def _with_noise(config: PerceptorConfig, kind: str) -> PerceptorConfig:
    """The helper as it hears other samples."""
    return config.model_copy(update={"noise_std": HELPER_NOISE.get(kind, 0.0)})


def _encoders_of(
    modalities: Sequence[str], supply: Supply
) -> tuple[tuple[Preparation, ...], dict[str, PerceptorConfig], tuple[str, ...]]:
    """What to make first, modality -> its encoder, and modalities whose vectors are features."""
    stored = tuple(m for m in modalities if _is_stored(m, supply))
    configs = {m: c for m in modalities if (c := supply.named.get(m)) is not None}
    rest = tuple(m for m in modalities if m not in stored and m not in configs)
    needs: tuple[Preparation, ...] = ()
    if rest:
        trained = _trained(supply, rest)
        needs, configs = (trained,), configs | {m: _exported(trained, m) for m in rest}
    return needs, {m: configs[m] for m in modalities if m in configs}, stored


def _is_stored(modality: str, supply: Supply) -> bool:
    if modality in supply.named:
        return supply.named[modality] is None
    return supply.dataset.modality(modality).perceptor is not None


def _trained(supply: Supply, modalities: tuple[str, ...]) -> Encoders:
    """Encoders by alignment of the modalities, or of a single one by its classes."""
    method: dict[str, Any] = {"name": "align", "head": {"dim": SIZE}, "prototypes": False}
    method["modalities"] = list(modalities)
    if len(modalities) == 1:
        method = {"name": "erm", "unknown": modalities[0], "label_fraction": 1.0, "dim": SIZE}
    base = supply.base
    sections = {
        "data": base.data.model_dump(mode="json") | {"path": supply.path},
        "learners": [supply.learner(m) for m in modalities],
        "method": method,
    }
    config = adapted(_RECIPE, sections, f"encoders of {', '.join(modalities)}")
    local = {"engine.threads": 1, "engine.epochs": supply.epochs, "engine.eval_every": 0}
    same = {f"engine.{key}": getattr(base.engine, key) for key in ("device", "precision")}
    config = set_keys(config, {**local, **same, "seed": 0})
    return encoders(supply.out, "+".join(modalities), config, supply.dataset.fingerprint())


def _embedded(
    supply: Supply, name: str, configs: Mapping[str, PerceptorConfig], keep: tuple[str, ...]
) -> Features:
    perceptors = tuple(c.model_copy(update={"modality": m}) for m, c in configs.items())
    fingerprint, device = supply.dataset.fingerprint(), supply.base.engine.device
    return features(supply.out, name, supply.path, fingerprint, perceptors, keep, device)


def _exported(trained: Encoders, modality: str) -> PerceptorConfig:
    return ExportedPerceptor(modality=modality, path=str(trained.place(modality)))


def _text_of(column: Column, supply: Supply) -> str:
    names = (m for m in column.modalities if supply.dataset.modality(m).kind == "text")
    return next(names, "")


def _size(
    configs: Mapping[str, PerceptorConfig], stored: Sequence[str], supply: Supply
) -> int | None:
    """The largest size of the known features, so that all rows have the same; None where encoders
    do not say theirs before they are loaded."""
    sizes = [int((supply.dataset.modality(m).shape or (0,))[0]) for m in stored]
    for config in configs.values():
        if not isinstance(config, ExportedPerceptor):
            return None
        made_here = Path(config.path).is_relative_to(supply.out.absolute() / "prepared")
        sizes.append(SIZE if made_here else read_info(Path(config.path).expanduser()).embed_dim)
    return max(sizes)
