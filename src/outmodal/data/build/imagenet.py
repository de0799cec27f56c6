"""ImageNet-1K, from the tree of folders in which it is handed out, or from a Parquet export.

    SOURCE/train/n01440764/n01440764_10026.JPEG ...
    SOURCE/val/n01440764/ILSVRC2012_val_00000293.JPEG ...   or all of val in one folder, with a
                                                            file that says the class of each
    SOURCE/data/train-00000-of-00294.parquet ...

Classes are numbered by their WordNet ids in alphabetical order, which is the usual numbering.
Nothing is downloaded.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge" (IJCV 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from outmodal.base import Config
from outmodal.data.build.common import BuildPlan, Progress, build_dataset
from outmodal.data.build.imagenet_captions import Captions
from outmodal.data.build.imagenet_names import WNID, Truth, named, read_truth
from outmodal.data.build.imagenet_picture import Recipe
from outmodal.data.build.imagenet_source import Notes, PictureSource, TreeSource, digest_of
from outmodal.data.build.imagenet_tree import (
    File,
    Scan,
    classified,
    digest,
    folders_in,
    key_of,
    ordered,
    pictures_in,
)
from outmodal.data.manifest import Dataset
from outmodal.errors import UserError

RECIPE = 1
"""Raised with every change of what this builder writes for a given configuration."""

CLASSES = 1000
PICTURES = {"train": 1_281_167, "val": 50_000}

_TRUTHS = (
    "LOC_val_solution.csv",
    "ILSVRC2012_validation_ground_truth.txt",
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
    "val/LOC_val_solution.csv",
    "val/ILSVRC2012_validation_ground_truth.txt",
)
"""Where the classes of validation pictures are looked for, under the source."""


class ImagenetConfig(Config):
    """Where ImageNet is and how it is stored.

    Attributes:
        source: Folder with train/ and val/, or with .parquet files.
        names: Names of the classes: lines "n01440764 tench, Tinca tinca" (LOC_synset_mapping.txt);
            of a Parquet export also one name a line in the order of the labels. Without it names
            are WordNet ids, or those in the export.
        val_labels: The classes of val, where its pictures lie in one folder: LOC_val_solution.csv,
            the devkit's ILSVRC2012_validation_ground_truth.txt, or lines "file wnid"; looked for
            in the source where it is None.
        synsets: What the devkit's numbers of classes stand for: its meta.mat, or lines
            "n02119789 1" (map_clsloc.txt); meta.mat beside `val_labels` where it is None.
        captions: JSON lines {"file": ..., "caption": ...}: they become a modality `text`.
        resize: Shorter side that larger pictures are resized to; 0 copies them as they are.
        quality: Of the JPEGs that have to be written.
        max_broken: Pictures that cannot be decoded to leave out; one more ends the build.
        seed: Decides the order of the samples, in which classes are mixed.
        samples_per_shard: Samples in a shard.
        image_column, label_column: Columns of a Parquet export.
        name: Name of the data set.
    """

    source: Path
    names: Path | None = None
    val_labels: Path | None = None
    synsets: Path | None = None
    captions: Path | None = None
    resize: int = Field(default=0, ge=0)
    quality: int = Field(default=90, ge=1, le=100)
    max_broken: int = Field(default=100, ge=0)
    seed: int = Field(default=0, ge=0)
    samples_per_shard: int = Field(default=1000, ge=1)
    image_column: str = "image"
    label_column: str = "label"
    name: str = "imagenet"

    @property
    def recipe(self) -> Recipe:
        """How pictures are stored."""
        return Recipe("jpg", self.resize, self.quality)


def build_imagenet(
    cfg: ImagenetConfig, out: Path, workers: int = 0, progress: Progress | None = None
) -> Dataset:
    """Build ImageNet in `out`; see `build_dataset` for resuming and errors.

    Beside the manifest lies `build-report.json`: what was done to how many pictures, which could
    not be read, and where counts are not the published ones.

    Raises:
        UserError: The source is not as above, or more pictures than `max_broken` are broken.
    """
    source = cfg.source
    if not source.is_dir():
        raise UserError(f"--source {source} is no folder: name the one with train/ and val/ in it")
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies inside the source {source}; choose a folder outside of it")
    if not (source / "train").is_dir() and any(parquet_files(source)):
        from outmodal.data.build.imagenet_parquet import plan_parquet

        return build_dataset(plan_parquet(cfg, parquet_files(source)), out, workers, progress)
    return build_dataset(plan_tree(cfg), out, workers, progress)


def parquet_files(source: Path) -> list[Path]:
    """The .parquet files of a folder and of its own folders, in the order of their paths."""
    return sorted([*source.glob("*.parquet"), *source.glob("*/*.parquet")])


def plan_tree(cfg: ImagenetConfig) -> BuildPlan:
    """Scan the tree and plan its shards; UserError that says what is wrong with it."""
    wnids, scan, notes = _train_classes(cfg.source), Scan(), Notes()
    numbers = {wnid: label for label, wnid in enumerate(wnids)}
    files = {
        "train": classified(cfg.source, {f"train/{w}": n for w, n in numbers.items()}, scan),
        "val": _validation(cfg, numbers, scan),
    }
    if not files["train"]:
        raise UserError(f"{cfg.source}/train holds no pictures in its {len(wnids)} folders")
    files = {split: held for split, held in files.items() if held}
    captions = Captions(cfg.captions) if cfg.captions else None
    notes.expect("classes", len(wnids), CLASSES)
    for split, expected in PICTURES.items():
        notes.expect(f"pictures in {split}", len(files.get(split, ())), expected)
    if scan.empty:
        notes.warnings.append(f"empty folders: {len(scan.empty)} ({min(scan.empty)} for one)")
    notes.facts |= scan.record()
    counts = {split: len(held) for split, held in files.items()}
    rest = (cfg.recipe, cfg.max_broken, counts, notes, captions)
    source = TreeSource(cfg.source, files, cfg.seed, *rest)
    classes = named(wnids, cfg.names)
    return plan_of(cfg, source, classes, wnids, digest(files))


def plan_of(
    cfg: ImagenetConfig,
    source: PictureSource,
    classes: Sequence[str],
    wnids: Sequence[str] | None,
    files_sha256: str,
) -> BuildPlan:
    """The plan of a source that has been scanned."""
    left_out = {"source", "names", "val_labels", "synsets", "captions", "max_broken"}
    return BuildPlan(
        name=cfg.name,
        classes=tuple(classes),
        splits=source.counts,
        samples_per_shard=cfg.samples_per_shard,
        request={
            "source": "imagenet",
            "recipe": RECIPE,
            **cfg.model_dump(mode="json", exclude=left_out),
            "classes_sha256": digest_of(classes),
            "captions_sha256": source.captions.sha256 if source.captions else None,
            "files_sha256": files_sha256,
        },
        source=source,
        wnids=None if wnids is None else tuple(wnids),
        watch=source.watch,
        beside=source.beside,
    )


def _train_classes(source: Path) -> list[str]:
    """The WordNet ids of train's folders, in order."""
    if not (source / "train").is_dir():
        inner = [*source.glob("*/train"), *source.glob("ILSVRC/Data/CLS-LOC/train")]
        hint = f"; did you mean --source {inner[0].parent}?" if inner else ""
        raise UserError(
            f"--source {source} has neither a folder train nor .parquet files: expected "
            f"train/n01440764/*.JPEG and val{hint}"
        )
    wnids = folders_in(source, "train")
    for name in wnids:
        if not WNID.fullmatch(name):
            raise UserError(
                f"{source}/train/{name}: expected folders named by WordNet ids (n01440764); for "
                "pictures of your own use `outmodal data build folder`"
            )
    if not wnids:
        raise UserError(f"{source}/train is empty: expected a folder for each class (n01440764)")
    return wnids


def _validation(cfg: ImagenetConfig, numbers: dict[str, int], scan: Scan) -> list[File]:
    """The pictures of val, by its folders or by the file of its labels; none without val."""
    if not (cfg.source / "val").is_dir():
        return []
    folders = [name for name in folders_in(cfg.source, "val") if WNID.fullmatch(name)]
    if folders:
        unknown = [name for name in folders if name not in numbers]
        if unknown:
            raise UserError(
                f"{cfg.source}/val/{unknown[0]}: train has no class {unknown[0]} (it has "
                f"{len(numbers)}): complete train, or remove the folder"
            )
        return classified(cfg.source, {f"val/{name}": numbers[name] for name in folders}, scan)
    pictures = pictures_in(cfg.source, "val", scan)
    if not pictures:
        return []
    truth = _truth(cfg)
    return ordered(
        (
            (f"val/{name}", size, _number(truth, name, numbers), key_of("", name))
            for name, size in pictures
        ),
        scan,
    )


def _truth(cfg: ImagenetConfig) -> Truth:
    """The file of val's labels: the one that is named, or one that lies in the source."""
    if cfg.val_labels is not None:
        return read_truth(cfg.val_labels, cfg.synsets)
    for name in _TRUTHS:
        if (cfg.source / name).is_file():
            return read_truth(cfg.source / name, cfg.synsets)
    raise UserError(
        f"{cfg.source}/val has its pictures in one folder, and nothing says their classes: name "
        "LOC_val_solution.csv, the devkit's ILSVRC2012_validation_ground_truth.txt or a text of "
        "'file wnid' with --val_labels, or sort them into folders by WordNet id"
    )


def _number(truth: Truth, name: str, numbers: dict[str, int]) -> int:
    wnid = truth.wnid(name)
    if wnid not in numbers:
        raise UserError(
            f"val/{name} is of class {wnid} by {truth.path}, and train has no folder of it (it "
            f"has {len(numbers)}): complete train, or give the labels of these pictures"
        )
    return numbers[wnid]
