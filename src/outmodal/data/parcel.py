"""Items of loader workers on their way to the main process: small parts through the link, tensors
in a file of memory whose handle goes with them. Nothing is copied on the receiving side."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from outmodal.data.batch import Batch

_ALIGN = 64
_PARTS = ("index", "label", "valid", "key", "target")


class _Place(NamedTuple):
    """One tensor: where it belongs, and where its bytes lie."""

    stream: str
    part: str  # a field of the batch
    name: str  # a column, for fields that are mappings
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Parcel:
    run: int
    item: Any  # without its batches
    places: list[_Place]
    size: int


def send(link: Connection, run: int, item: Any) -> None:
    """Send an item with `batches`, which is a dataclass, of the run with this number."""
    places, arrays, size = _lay_out(item.batches)
    link.send(_Parcel(run, replace(item, batches={}), places, size))
    if not size:
        return
    handle = os.memfd_create("outmodal-batch")
    try:
        os.ftruncate(handle, size)
        with mmap.mmap(handle, size) as memory:
            whole = np.frombuffer(memory, np.uint8)
            for place, array in zip(places, arrays, strict=True):
                if array.nbytes:
                    _view(whole, place)[...] = array
            del whole
        send_handle(link, handle, None)
    finally:
        os.close(handle)


def receive(link: Connection) -> tuple[int, Any]:
    """Return (run, item) of what was sent next; EOFError or OSError where the sender has ended."""
    parcel: _Parcel = link.recv()
    if not parcel.size:
        return parcel.run, parcel.item
    handle = recv_handle(link)
    try:
        memory = mmap.mmap(handle, parcel.size)
    finally:
        os.close(handle)
    whole = np.frombuffer(memory, np.uint8)
    found: dict[str, dict[str, Any]] = {}
    for place in parcel.places:
        fields = found.setdefault(place.stream, {"x": {}, "present": {}})
        tensor = torch.from_numpy(_view(whole, place))
        if place.part in _PARTS:
            fields[place.part] = tensor
        else:
            fields[place.part][place.name] = tensor
    batches = {stream: Batch(**fields) for stream, fields in found.items()}
    return parcel.run, replace(parcel.item, batches=batches)


def _lay_out(batches: dict[str, Batch]) -> tuple[list[_Place], list[Any], int]:
    places, arrays, size = [], [], 0
    for stream, batch in batches.items():
        for part, name, tensor in _tensors(batch):
            array = tensor.numpy()
            places.append(_Place(stream, part, name, array.dtype.str, array.shape, size))
            arrays.append(array)
            size += -(-array.nbytes // _ALIGN) * _ALIGN
    return places, arrays, size


def _tensors(batch: Batch) -> Iterator[tuple[str, str, Tensor]]:
    for part in _PARTS:
        tensor = getattr(batch, part)
        if tensor is not None:
            yield part, "", tensor
    for part in ("x", "present"):
        for name, tensor in getattr(batch, part).items():
            yield part, name, tensor


def _view(whole: Any, place: _Place) -> Any:
    dtype = np.dtype(place.dtype)
    count = int(np.prod(place.shape, dtype=np.int64)) * dtype.itemsize
    return whole[place.offset : place.offset + count].view(dtype).reshape(place.shape)
