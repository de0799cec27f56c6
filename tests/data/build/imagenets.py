"""Small trees in ImageNet's form, with the files that the real one is awkward by."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.build.sources import write

WNIDS = ("n01440764", "n01443537", "n02012849", "n03126707")
NAMES = (
    "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"
    "n02012849 crane\nn03126707 crane\n"
)
BLANK = "n02012849"
"""The class whose folder is empty in an awkward tree."""


def picture(seed: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    """A smooth picture of noise, width by height, with the look of its seed."""
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), np.uint8)
    pixels = small[:, :, 0] if channels == 1 else small
    return Image.fromarray(pixels, mode).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def jpeg(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """A plain RGB JPEG."""
    return encoded(picture(seed, size), quality=90)


def turned(seed: int) -> bytes:
    """A JPEG whose metadata asks for a quarter turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(seed), exif=exif)


def plain_files(each: int = 3) -> dict[str, bytes | str]:
    """`each` pictures of every class in train, and one in val, by folders."""
    files: dict[str, bytes | str] = {}
    for label, wnid in enumerate(WNIDS):
        for n in range(each):
            files[f"train/{wnid}/{wnid}_{n}.JPEG"] = jpeg(100 * label + n)
        files[f"val/{wnid}/{validation(label)}"] = jpeg(1000 + label)
    return files


def validation(label: int) -> str:
    """The name of the validation picture of a class: not in the order of the classes."""
    return f"ILSVRC2012_val_{(7, 2, 9, 1)[label]:08d}.JPEG"


def flat(files: Mapping[str, bytes | str]) -> dict[str, bytes | str]:
    """The same files with all of val in one folder."""
    return {
        f"val/{name.rpartition('/')[2]}" if name.startswith("val/") else name: data
        for name, data in files.items()
    }


AWKWARD: Mapping[str, bytes | str] = {
    "train/n01440764/n01440764_cmyk.JPEG": encoded(picture(1, mode="CMYK")),
    "train/n01440764/n01440764_png.JPEG": encoded(picture(2), "PNG"),
    "train/n01440764/n01440764_alpha.JPEG": encoded(picture(3).convert("RGBA"), "PNG"),
    "train/n01440764/n01440764_cut.JPEG": jpeg(4)[:-200],
    "train/n01440764/n01440764_zero.JPEG": b"",
    "train/n01440764/n01440764_text.JPEG": b"<html>403 Forbidden</html>",
    "train/n01440764/n01440764_grey.JPEG": encoded(picture(5, mode="L")),
    "train/n01440764/n01440764_exif.JPEG": turned(6),
    "train/n01443537/twice.jpg": jpeg(7),
    "train/n01443537/twice.JPEG": jpeg(8),
    "train/n01443537/with. dots, and spaces.jpeg": jpeg(9),
    "train/n01443537/.DS_Store": b"\0\0\0\1Bud1",
    "train/n01443537/._twice.jpg": b"\0\5\26\7",
    "train/n01443537/readme.txt": "not a picture",
    "train/.cache/x.JPEG": jpeg(10),
    "train/n03126707/n03126707_large.JPEG": jpeg(11, (90, 60)),
    "val/n03126707/ILSVRC2012_val_00000004.JPEG": jpeg(12),
}


def awkward_tree(root: Path) -> Path:
    """Three classes with pictures and one without."""
    write(root, AWKWARD)
    (root / "train" / BLANK).mkdir()
    return root


Rows = Sequence[tuple[bytes | None, str | None, int]]
CLASSES = ("tench", "goldfish", "crane", "crane")


def export(path: Path, rows: Rows, group: int = 4, names: Sequence[str] = CLASSES) -> Path:
    """Write (bytes, path, label) as `datasets` does, with names in the metadata where given."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())])
    if names:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        meta = {"huggingface": json.dumps({"info": {"features": features}})}
        schema = schema.with_metadata(meta)
    held = {
        "image": [{"bytes": data, "path": name} for data, name, _ in rows],
        "label": [label for _, _, label in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(held, schema), path, row_group_size=group)
    return path


def downloads(root: Path) -> None:
    """Small stand-ins for ImageNet, an export of it, and its evaluation sets."""
    tree = root / "ILSVRC" / "Data" / "CLS-LOC"
    write(tree, flat(plain_files(2)))
    truth = "".join(f"{validation(n)[:-5]},{w} 1 2 3 4\n" for n, w in enumerate(WNIDS))
    texts = {
        "LOC_synset_mapping.txt": NAMES,
        "LOC_val_solution.csv": f"ImageId,PredictionString\n{truth}",
    }
    write(root, texts)
    rows = [(jpeg(n), f"{w}_{n}_{w}.JPEG", n) for n, w in enumerate(WNIDS)]
    export(root / "imagenet-1k" / "data" / "train-00000-of-00001.parquet", rows)
    write(root / "imagenetv2", {f"{n}/x.jpeg": jpeg(n) for n in range(4)})
    for name, held in (
        ("imagenet-r", WNIDS[:2]),
        ("imagenet-a", WNIDS[2:]),
        ("sketch", WNIDS),
        ("stylized", WNIDS),
    ):
        write(root / name, {f"{w}/x.JPEG": jpeg(n) for n, w in enumerate(held)})
    write(root / "imagenet-c", {f"blur/zoom_blur/{s}/{WNIDS[0]}/x.JPEG": jpeg(s) for s in (1, 2)})
