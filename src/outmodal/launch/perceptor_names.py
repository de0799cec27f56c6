"""Perceptors as the command line names them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from outmodal.errors import UserError

if TYPE_CHECKING:
    from outmodal.models.perceptors.base import PerceptorBase

FAMILIES = ("imagebind", "languagebind", "hub")
"""What may stand before a path with a colon; imagebind also as imagebind/TOWER."""


def perceptor_config(text: str, modality: str = "", allow_download: bool = False) -> PerceptorBase:
    """Read one perceptor.

    Args:
        text: FOLDER of an export; MODALITY=FOLDER or MODALITY=HUB_ID for an export or any
            transformers model; [MODALITY=]FAMILY:PATH for the others.
        modality: What it encodes where `text` does not say so; "" is unknown.
        allow_download: Whether the files of hub ids may be fetched.

    Raises:
        UserError: The modality is needed and missing.
    """
    from outmodal.models.perceptors import (
        ExportedPerceptor,
        HubPerceptor,
        ImageBindPerceptor,
        LanguageBindPerceptor,
    )

    named, place = _split(text)
    modality = named or modality
    family, path = _family(place, bool(modality))
    if family == "exported":
        return ExportedPerceptor(path=path, modality=modality or None)
    if not modality:
        raise UserError(
            f"--perceptor {text} does not say what it encodes: write MODALITY={text}, or name the "
            "modality with --modalities"
        )
    fields = {"path": path, "modality": modality, "allow_download": allow_download}
    family, slash, tower = family.partition("/")
    if family == "imagebind":
        return _checked(ImageBindPerceptor, fields | ({"tower": tower} if slash else {}), text)
    if slash:
        raise UserError(f"--perceptor {text}: only imagebind has towers to name")
    return _checked(
        LanguageBindPerceptor if family == "languagebind" else HubPerceptor, fields, text
    )


def perceptor_configs(
    texts: tuple[str, ...], modalities: tuple[str, ...], allow_download: bool = False
) -> list[PerceptorBase]:
    """Read the perceptors of a command.

    Each modality in `modalities` that no `MODALITY=` claims is encoded by the perceptors without
    one: a single one encodes all of them, several take one each, in order.

    Raises:
        UserError: No perceptor, or modalities and perceptors do not fit together.
    """
    if not texts:
        raise UserError("--perceptor is missing: name an exported encoder, or MODALITY=FOLDER")
    claimed = [modality for modality, _ in map(_split, texts) if modality]
    free = [text for text in texts if not _split(text)[0]]
    unclaimed = [name for name in modalities if name not in claimed]
    strangers = sorted(set(claimed) - set(modalities)) if modalities else []
    if strangers:
        raise UserError(
            f"--perceptor for {', '.join(strangers)}, which --modalities does not name: leave it "
            "out, or name it there"
        )
    if unclaimed and not free:
        raise UserError(f"no --perceptor for {', '.join(unclaimed)}: add {unclaimed[0]}=FOLDER")
    if modalities and len(free) not in (min(1, len(unclaimed)), len(unclaimed)):
        raise UserError(
            f"{len(free)} perceptors for the modalities {', '.join(unclaimed) or '(none left)'}: "
            "write MODALITY= before each"
        )
    names = unclaimed if modalities else [""] * len(free)
    each = free * len(names) if len(free) == 1 else free
    pairs = [(text, "") for text in texts if text not in free]
    pairs += list(zip(each, names, strict=True))
    return [perceptor_config(text, name, allow_download) for text, name in pairs]


def _checked(kind: type[PerceptorBase], fields: dict[str, Any], text: str) -> PerceptorBase:
    """Make a configuration; a value that it does not know is the user's."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--perceptor {text}: {first['loc'][0]}: {first['msg']}") from None


def _split(text: str) -> tuple[str, str]:
    """(modality or "", the rest). A folder whose name holds "=" is found by its existence."""
    modality, equals, place = text.partition("=")
    if not equals or Path(text).expanduser().exists():
        return "", text
    return modality, place


def _family(place: str, is_named: bool) -> tuple[str, str]:
    """(name of the family, path). Only an export knows by itself what it encodes."""
    family, colon, path = place.partition(":")
    if colon and family.partition("/")[0] in FAMILIES:
        return family, path
    is_export = (Path(place).expanduser() / "outmodal.json").is_file()
    return ("hub" if is_named and not is_export else "exported"), place
