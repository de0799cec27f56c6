"""The Triton kernels of ova against fp64, in Triton's interpreter."""

from __future__ import annotations

import pytest

from tests.models.kernels import interpreted


@pytest.mark.timeout(900)
def test_against_fp64_in_the_interpreter() -> None:
    assert "passed" in interpreted.run("cases_ova_triton.py")
