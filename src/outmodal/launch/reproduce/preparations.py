"""What cells need before they can be trained: frozen encoders, and data sets of their features.

    OUT/prepared/image+text-1f2e3d4c/run      trained for a column of unknown speech
    OUT/prepared/image+text-1f2e3d4c/image    its encoders, exported
    OUT/prepared/speech_from_image+text-5b6a7988/data    features of image and text, speech as it is

A folder's name ends in a digest of everything that decides what is in it, so that other settings
never meet what was made with these. Whoever comes first makes a part, and others that need it wait:
processes of one machine, and tasks of a job array. A part that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outmodal.data.cache import write_atomic
from outmodal.data.manifest import MANIFEST
from outmodal.errors import UserError
from outmodal.launch.config import RunConfig, set_keys
from outmodal.models.perceptors import PerceptorConfig
from outmodal.train.folderlock import FolderLock, writing

_DONE = "done.json"
_PAUSE = 2.0  # seconds between two looks at a folder that somebody else works in


@dataclass(frozen=True)
class Encoders:
    """Encoders that a run trains, exported.

    Attributes:
        folder: Where.
        config: The run.
        modalities: What to export.
    """

    folder: Path
    config: RunConfig
    modalities: tuple[str, ...]

    @property
    def what(self) -> str:
        """For people."""
        return f"{self.config.method.name} on {', '.join(self.modalities)}, exported"

    def place(self, modality: str) -> Path:
        """Folder of an export."""
        return self.folder / modality

    def done(self) -> bool:
        """Whether all of it is there."""
        return (self.folder / _DONE).is_file()

    def make(self) -> None:
        """Train and export; goes on where it was stopped."""
        from outmodal.launch.card import card_for
        from outmodal.launch.running import open_run, run_plan
        from outmodal.train.exporting import export_run
        from outmodal.train.run import train

        run = self.folder / "run"
        train(run_plan(self.config, run))
        config, plan = open_run(run)
        for m in self.modalities:
            export_run(plan, self.place(m), card_for(config, run), modality=m, force=True)
        write_atomic(self.folder / _DONE, json.dumps({"exports": self.modalities}).encode())


@dataclass(frozen=True)
class Features:
    """A data set with features of some modalities beside others as they are.

    Attributes:
        folder: Where.
        source: The data set that is read.
        perceptors: Who makes the features.
        keep: Modalities that stay as they are.
        device: Where perceptors compute: auto, cpu or cuda.
    """

    folder: Path
    source: str
    perceptors: tuple[PerceptorConfig, ...]
    keep: tuple[str, ...]
    device: str = "auto"

    @property
    def what(self) -> str:
        """For people."""
        made = ", ".join(str(getattr(p, "modality", "")) for p in self.perceptors)
        return f"features of {made}; {', '.join(self.keep) or 'nothing'} as it is"

    @property
    def data(self) -> Path:
        """The data set."""
        return self.folder / "data"

    def done(self) -> bool:
        """Whether all of it is there."""
        return (self.data / MANIFEST).is_file()

    def make(self) -> None:
        """Embed; goes on where it was stopped."""
        import torch

        from outmodal.data.manifest import open_dataset
        from outmodal.models.embed import embed_dataset
        from outmodal.models.perceptors import load_perceptor

        dataset = open_dataset(self.source)
        perceptors = [load_perceptor(config, dataset) for config in self.perceptors]
        if self.device != "cpu" and torch.cuda.is_available():
            for perceptor in perceptors:
                perceptor.to(torch.device("cuda"))
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # features must not depend on how many threads made them
        try:
            embed_dataset(dataset, perceptors, self.keep, self.data)
        finally:
            torch.set_num_threads(before)


Preparation = Encoders | Features


def encoders(out: Path, name: str, config: RunConfig, fingerprint: str) -> Encoders:
    """Encoders of a run's modalities, in a folder named after them and all that decides them.

    Args:
        out: Folder of the tables.
        name: Of the modalities.
        config: The run; its `out` is set here.
        fingerprint: Of its data set.
    """
    held = config.model_dump(mode="json") | {"out": ""}
    held["data"] |= {"path": fingerprint}
    held["engine"] |= {"device": ""}
    folder = _folder(out, name, held)
    own = set_keys(config, {"out": str(folder / "run")})
    return Encoders(folder, own, tuple(cfg.modality for cfg in config.learners))


def features(
    out: Path,
    name: str,
    source: str,
    fingerprint: str,
    perceptors: tuple[PerceptorConfig, ...],
    keep: tuple[str, ...],
    device: str = "auto",
) -> Features:
    """A data set of features, in a folder of such a name."""
    held = {
        "data": fingerprint,
        "perceptors": [_portable(p.model_dump(mode="json"), out) for p in perceptors],
        "keep": keep,
    }
    return Features(_folder(out, name, held), source, perceptors, keep, device)


def ensure(part: Preparation) -> None:
    """Make a part, or wait until the process that makes it is done.

    Raises:
        UserError: It cannot be made.
        StoppedEarly: A signal asked for it.
    """
    with _alone(part) as own:
        if own and not part.done():
            part.make()


def ensure_all(parts: tuple[Preparation, ...]) -> None:
    """`ensure`, for each in order: later ones read earlier ones."""
    for part in parts:
        if not part.done():
            ensure(part)


@contextmanager
def _alone(part: Preparation) -> Iterator[bool]:
    """Hold a part's folder; False where it was done by somebody else meanwhile."""
    with writing(part.folder):
        part.folder.mkdir(parents=True, exist_ok=True)
    lock, told = None, False
    while lock is None:
        try:
            lock = FolderLock(part.folder)
        except UserError as held:
            if part.done():
                yield False
                return
            if not told:
                sys.stderr.write(f"waiting for {part.what}: {held}\n")
                told = True
            time.sleep(_PAUSE)
    try:
        yield True
    finally:
        lock.release()


def _folder(out: Path, name: str, held: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:8]
    return out.absolute() / "prepared" / f"{name}-{digest}"


def _portable(perceptor: dict[str, Any], out: Path) -> dict[str, Any]:
    """Paths of what was prepared here relative to the folder, which may move."""
    root = f"{out.absolute()}/"
    return {k: v.removeprefix(root) if isinstance(v, str) else v for k, v in perceptor.items()}
