"""Arrays from .npy bytes: what numpy writes and no more, without numpy's reader of headers."""

from __future__ import annotations

import ast
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from outmodal.data.decode_error import DecodeError
from outmodal.data.decode_npy import read_npy
from tests.fuzz.bombs import npy

PLAIN = st.sampled_from(["<f4", ">f8", "<f2", "|i1", "<i8", ">u2", "|b1", "<u4"]).map(np.dtype)


def written(array: np.ndarray[Any, Any], version: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version, allow_pickle=False)
    return buffer.getvalue()


@given(
    PLAIN.flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=4, min_side=0))),
    st.sampled_from([(1, 0), (2, 0)]),
    st.booleans(),
)
def test_what_numpy_writes_is_read(
    array: np.ndarray[Any, Any], version: tuple[int, int], fortran: bool
) -> None:
    stored = np.asfortranarray(array) if fortran else array
    found = read_npy(written(stored, version))
    assert found.dtype == array.dtype.newbyteorder("=")
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, array)


def test_python_is_not_asked_to_read_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the header was given to Python's compiler")

    monkeypatch.setattr(ast, "literal_eval", never)
    assert read_npy(written(np.arange(6.0).reshape(2, 3)[:, ::-1], (1, 0))).shape == (2, 3)


@pytest.mark.parametrize(
    "header",
    [
        b'{"shape": (2,), "descr": "<f4", "fortran_order": False}',
        b"  {'descr':'<f4','fortran_order':False,'shape':(2 , ) , }  \n",
    ],
)
def test_other_writers_have_other_spaces_and_orders(header: bytes) -> None:
    assert read_npy(npy(header) + bytes(8)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False}",
        b"{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} + {}",
        b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (2,)}",
        b"{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}",
        b"{'descr': '<f3', 'fortran_order': False, 'shape': (2,)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 30 + b",)}",
        b"[1, 2]",
        b"{",
        b"",
    ],
)
def test_anything_else_is_refused(header: bytes) -> None:
    with pytest.raises(DecodeError, match="npy"):
        read_npy(npy(header) + bytes(8))
