"""One description for several data sets: their modalities, and their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from outmodal.data.manifest import Dataset, Modality
from outmodal.errors import UserError, nearest

Classes = Literal["offset", "same"] | dict[str, str]
"""How a source's classes join those of the sources before it."""


def united_modalities(sources: Mapping[str, Dataset]) -> dict[str, Modality]:
    """Return every modality that one of the sources (by name) has.

    What differs between sources is left open: channels, size, the lengths of a shape's axes.
    Sounds are decoded at the first rate that a source states.

    Raises:
        UserError: Two sources disagree on a modality's kind, or on which perceptor made it.
    """
    found: dict[str, tuple[str, Modality]] = {}
    for name, dataset in sources.items():
        for modality, spec in dataset.manifest.modalities.items():
            if modality not in found:
                found[modality] = (name, spec)
                continue
            first, united = found[modality]
            found[modality] = (first, _united(modality, first, united, name, spec))
    return {modality: spec for modality, (_, spec) in found.items()}


def _united(modality: str, first: str, a: Modality, name: str, b: Modality) -> Modality:
    """`a` with what holds for `b` as well."""
    for what, x, y in (("kind", a.kind, b.kind), ("perceptor", a.perceptor, b.perceptor)):
        if x != y:
            raise UserError(
                f"data.mix: the {what} of modality '{modality}' is {x} in {first} and {y} in "
                f"{name}, and one learner reads both: leave one of the data sets out, or build "
                f"one again with the modality as the other has it (or under another name)"
            )
    return a.model_copy(
        update={
            "channels": a.channels if a.channels == b.channels else None,
            "size": a.size if a.size == b.size else None,
            "sample_rate": a.sample_rate or b.sample_rate,
            "shape": _common_shape(modality, first, a, name, b),
        }
    )


def _common_shape(
    modality: str, first: str, a: Modality, name: str, b: Modality
) -> tuple[int, ...] | None:
    if a.shape is None or b.shape is None:
        return None
    if len(a.shape) != len(b.shape) or (a.kind == "vector" and a.shape != b.shape):
        raise UserError(
            f"data.mix: modality '{modality}' has the shape {list(a.shape)} in {first} and "
            f"{list(b.shape)} in {name}, and one learner reads both: leave one of the data sets "
            "out, or build one again with the modality under another name"
        )
    return tuple(x if x == y else -1 for x, y in zip(a.shape, b.shape, strict=True))


def united_classes(
    sources: Sequence[tuple[str, Sequence[str], Classes]],
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Join class sets in the order of the sources.

    offset: the classes are new ones; a name that is taken becomes NAME-OF-SOURCE/CLASS.
    same: they are the first source's, name for name.
    mapping: a class counts as the class of an earlier source that it is mapped to; one that the
        mapping does not name as the class of its own name, a new one where there is none. The
        first source's mapping gives new names.

    Args:
        sources: Name, classes, and how they join, of each.

    Returns:
        All classes, and for each source the number in them of each of its own.

    Raises:
        UserError: Classes that are not the same, or a mapping that names an unknown class.
    """
    classes: dict[str, int] = {}
    maps = []
    for number, (name, own, how) in enumerate(sources):
        if how == "same" and number:
            _check_same(name, own, sources[0])
        if isinstance(how, dict):
            names = _mapped(name, own, how, classes if number else None)
        elif how == "offset":
            names = [c if c not in classes else f"{name}/{c}" for c in own]
        else:
            names = list(own)
        for class_name in names:
            classes.setdefault(class_name, len(classes))
        maps.append(tuple(classes[class_name] for class_name in names))
    return tuple(classes), tuple(maps)


def _check_same(name: str, own: Sequence[str], first: tuple[str, Sequence[str], Classes]) -> None:
    if list(own) != list(first[1]):
        raise UserError(
            f"data.mix: {name} has the classes {_some(own)}, and classes: same wants those of "
            f"{first[0]}, {_some(first[1])}: write classes: offset where they are other classes, "
            "or a mapping from its names to those"
        )


def _mapped(
    name: str, own: Sequence[str], mapping: Mapping[str, str], known: Mapping[str, int] | None
) -> list[str]:
    for key, value in mapping.items():
        if key not in own:
            raise UserError(
                f"data.mix: the class mapping of {name} names '{key}', which is no class of it"
                + nearest(key, own)
            )
        if known is not None and value not in known:
            raise UserError(
                f"data.mix: the class mapping of {name} maps '{key}' to '{value}', which is no "
                f"class of the data sets before it{nearest(value, known)}"
            )
    return [mapping.get(c, c) for c in own]


def _some(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:5]) or "none"
    return f"{shown} ... ({len(classes)})" if len(classes) > 5 else shown
