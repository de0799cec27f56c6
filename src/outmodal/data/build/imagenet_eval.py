"""Sets that ImageNet classifiers are measured on, with ImageNet's numbers of classes.

    v2         SOURCE/0 ... SOURCE/999                ImageNetV2 (Recht et al., ICML 2019)
    r          SOURCE/n01443537/*.jpg, 200 classes    ImageNet-R (Hendrycks et al., ICCV 2021)
    a          SOURCE/n01498041/*.jpg, 200 classes    ImageNet-A (Hendrycks et al., CVPR 2021)
    sketch     SOURCE/n01440764/*.JPEG                ImageNet-Sketch (Wang et al., NeurIPS 2019)
    stylized   SOURCE/n01440764/*                     Stylized-ImageNet (Geirhos et al., ICLR 2019)
    c          SOURCE/[noise/]gaussian_noise/1/n01440764/*.JPEG    ImageNet-C (Hendrycks and
                                                      Dietterich, ICLR 2019), a split for each cell

Folders are WordNet ids, or numbers of classes, for any of them. Of a set with some of the classes
the manifest says which (`subset`), and a classifier is asked to choose among these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from pydantic import Field

from outmodal.base import Config
from outmodal.data.build.common import BuildPlan, Progress, build_dataset
from outmodal.data.build.imagenet_names import distinct, read_names
from outmodal.data.build.imagenet_picture import Recipe
from outmodal.data.build.imagenet_source import Notes, TreeSource, digest_of
from outmodal.data.build.imagenet_tree import File, Scan, classified, digest, folders_in
from outmodal.data.corruptions.imagenet_c import ALEXNET, EXTRA, SEVERITIES, cell_name
from outmodal.data.manifest import Dataset, open_dataset
from outmodal.errors import UserError

RECIPE = 1
"""Raised with every change of what this builder writes for a given configuration."""

TEST = "test"
Kind = Literal["v2", "r", "a", "sketch", "stylized", "c"]


class Published(NamedTuple):
    """How large a set is; of ImageNet-C, one cell."""

    pictures: int
    classes: int


KINDS: Mapping[Kind, Published] = {
    "v2": Published(10_000, 1000),
    "r": Published(30_000, 200),
    "a": Published(7_500, 200),
    "sketch": Published(50_889, 1000),
    "stylized": Published(50_000, 1000),
    "c": Published(50_000, 1000),
}


class ImagenetEvalConfig(Config):
    """Where the set is, and whose classes it is numbered by.

    Attributes:
        kind: Which set.
        source: Folder that holds the folders of classes; of ImageNet-C those of corruptions, or of
            their groups (noise, blur, weather, digital).
        like: Data set that runs were trained on: classes get its numbers and names.
        names: In place of `like`, lines "n01440764 tench, Tinca tinca" of all classes; only with
            the file that ImageNet was built with are the names the same.
        resize: Shorter side that larger pictures are resized to; 0 copies them as they are.
        quality: Of the JPEGs that have to be written; a set of PNGs stays one of PNGs.
        max_broken: Pictures that cannot be decoded to leave out; one more ends the build.
        seed: Decides the order of the samples.
        samples_per_shard: Samples in a shard.
    """

    kind: Kind
    source: Path
    like: str = ""
    names: Path | None = None
    resize: int = Field(default=0, ge=0)
    quality: int = Field(default=90, ge=1, le=100)
    max_broken: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    samples_per_shard: int = Field(default=1000, ge=1)

    @property
    def name(self) -> str:
        """Name of the data set."""
        return f"imagenet-{self.kind}"


def build_imagenet_eval(
    cfg: ImagenetEvalConfig, out: Path, workers: int = 0, progress: Progress | None = None
) -> Dataset:
    """Build the set in `out`; see `build_dataset` for resuming, `build_imagenet` for the report.

    Raises:
        UserError: The source has a folder of an unknown class or no classes at all, or more
            pictures than `max_broken` are broken.
    """
    if not cfg.source.is_dir():
        raise UserError(f"--source {cfg.source} is no folder: name the one with the pictures")
    if out.resolve().is_relative_to(cfg.source.resolve()):
        raise UserError(f"{out} lies inside the source {cfg.source}; choose a folder outside of it")
    return build_dataset(plan_eval(cfg), out, workers, progress)


def plan_eval(cfg: ImagenetEvalConfig) -> BuildPlan:
    """Scan the folders and plan the shards; UserError that says what is wrong with them."""
    classes, wnids = _numbering(cfg)
    scan, notes = Scan(), Notes()
    places = _cells(cfg, notes) if cfg.kind == "c" else {TEST: ""}
    files = {
        split: classified(cfg.source, _class_folders(cfg, place, wnids), scan)
        for split, place in places.items()
    }
    empty = [split for split, held in files.items() if not held]
    if empty:
        raise UserError(f"{cfg.source}/{places[empty[0]]}: no pictures in its folders of classes")
    present = sorted({file.label for held in files.values() for file in held})
    notes.expect("classes", len(present), KINDS[cfg.kind].classes)
    for split, held in files.items():
        notes.expect(f"pictures in {split}", len(held), KINDS[cfg.kind].pictures)
    notes.facts |= scan.record()
    counts = {split: len(held) for split, held in files.items()}
    recipe = Recipe("png" if _are_pngs(files) else "jpg", cfg.resize, cfg.quality)
    rest = (recipe, cfg.max_broken, counts, notes, None)
    source = TreeSource(cfg.source, files, cfg.seed, *rest, alike=True)
    left_out = {"source", "like", "names", "max_broken"}
    return BuildPlan(
        name=cfg.name,
        classes=classes,
        splits=counts,
        samples_per_shard=cfg.samples_per_shard,
        request={
            "source": cfg.name,
            "recipe": RECIPE,
            **cfg.model_dump(mode="json", exclude=left_out),
            "classes_sha256": digest_of(classes),
            "files_sha256": digest(files),
        },
        source=source,
        wnids=wnids,
        subset=tuple(present) if len(present) < len(classes) else None,
        watch=source.watch,
        beside=source.beside,
    )


def _numbering(cfg: ImagenetEvalConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and WordNet ids of the classes, in the order of their numbers."""
    if cfg.like:
        manifest = open_dataset(cfg.like, verify=False).manifest
        if manifest.wnids is None:
            raise UserError(
                f"--like {cfg.like} does not say the WordNet ids of its classes: name the data set "
                "that `outmodal data build imagenet` has made"
            )
        return manifest.classes, manifest.wnids
    if cfg.names is None:
        raise UserError(
            "--like is missing: name the ImageNet data set that runs were trained on, so that "
            "classes get the same numbers; or all classes in a file with --names"
        )
    names = dict(sorted(read_names(cfg.names).items()))
    return distinct(tuple(names), tuple(names.values())), tuple(names)


def _class_folders(cfg: ImagenetEvalConfig, place: str, wnids: Sequence[str]) -> dict[str, int]:
    """Folder -> class of the folders in source/place: WordNet ids, or numbers."""
    folders = folders_in(cfg.source, place)
    if folders and all(name.isascii() and name.isdigit() for name in folders):
        numbers = {name: int(name) for name in folders}
    else:
        known = {wnid: label for label, wnid in enumerate(wnids)}
        numbers = {name: known.get(name, -1) for name in folders}
    if not numbers:
        raise UserError(
            f"{cfg.source / place} has no folders: expected one for each class, called by its "
            "WordNet id (n01440764) or its number"
        )
    for name, number in numbers.items():
        if not 0 <= number < len(wnids):
            whose = cfg.like or cfg.names
            raise UserError(
                f"{cfg.source / place / name}: none of the {len(wnids)} classes of {whose} is "
                f"'{name}': expected WordNet ids as {wnids[0]}. If it is a class of ImageNet, name "
                "the data set of all classes with --like; if it is none, move the folder away"
            )
    return {str(PurePosixPath(place) / name): number for name, number in numbers.items()}


def _cells(cfg: ImagenetEvalConfig, notes: Notes) -> dict[str, str]:
    """Split -> its folder, of the corruptions that are there."""
    found: dict[str, str] = {}
    above = ["", *folders_in(cfg.source, "")]
    for name in (*ALEXNET, *EXTRA):
        at = [place for place in above if (cfg.source / place / name).is_dir()]
        for severity in SEVERITIES if at else ():
            place = PurePosixPath(at[0]) / name / str(severity)
            if (cfg.source / place).is_dir():
                found[cell_name(name, severity)] = str(place)
    if not found:
        raise UserError(
            f"--source {cfg.source}: expected folders as gaussian_noise/1/n01440764 or "
            "noise/gaussian_noise/1/n01440764, and found none"
        )
    missing = [
        cell
        for name in ALEXNET
        for cell in (cell_name(name, severity) for severity in SEVERITIES)
        if cell not in found
    ]
    if missing:
        notes.warnings.append(
            f"{len(missing)} of the 75 cells are not there, {missing[0]} for one: without all of "
            "them there is no mCE"
        )
    return found


def _are_pngs(files: Mapping[str, Sequence[File]]) -> bool:
    """Whether most pictures are PNGs by their names: those are kept without loss."""
    every = [file.path[-4:].lower() == ".png" for held in files.values() for file in held]
    return sum(every) * 2 > len(every)
