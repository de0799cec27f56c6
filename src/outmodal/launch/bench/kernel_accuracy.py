"""Errors against the plain forms in fp64, on the inputs as they are after rounding."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from outmodal.launch.bench.kernel_problems import Inputs, Problem, Sizes, draw
from outmodal.models.kernels.nce import nce
from outmodal.models.kernels.nearest import nearest
from outmodal.models.kernels.ova import ova

LARGEST = 1024
"""Rows: the plain forms hold all pairs in fp64."""
GATES = {
    "fp32": {"loss": 1e-5, "grad": 1e-4, "scale": 1e-4},
    "bf16": {"loss": 1e-5, "grad": 5e-3, "scale": 5e-3},
    "fp16": {"loss": 1e-5, "grad": 5e-3, "scale": 5e-3},
}
"""Largest relative errors that are let pass; in half precision gradients are rounded to it, and
may have passed through matrices rounded to it."""
CASES = {"scale 14.3": (1 / 0.07, 0.3), "scale 100": (100.0, 0.3)}


def small(sizes: Sizes) -> Sizes:
    """The problem with so few rows that fp64 is quick."""
    n, mo = min(sizes.n, LARGEST), min(sizes.mo, 4 * LARGEST)
    return dataclasses.replace(sizes, n=n, mo=mo)


def errors(problem: Problem, name: str, inputs: Inputs) -> dict[str, float]:
    """Relative errors of the loss, the worst of the embeddings' gradients and the scale's, by the
    norm; for nearest the share of rows whose index differs."""
    got = _results(problem, name, inputs)
    expected = _expected(problem.sizes, inputs)
    if problem.sizes.op == "nearest":
        return {"index": float((got["index"] != expected["index"]).double().mean())}
    each = {key: _relative(got[key], value) for key, value in expected.items()}
    grad = max(value for key, value in each.items() if key.startswith("embedding"))
    return {"loss": each["loss"], "grad": grad, "scale": each["scale"]}


def check(sizes: Sizes) -> list[dict[str, Any]]:
    """Our own errors in every case beside what is let pass: records with "passed"."""
    from outmodal.launch.bench.kernel_problems import OURS, make_problem

    few = small(sizes)
    problem = make_problem(few, [OURS])
    records = []
    for case, (scale, cosine) in CASES.items():
        found = errors(problem, OURS, draw(few, 1, scale, cosine))
        gates = GATES[sizes.dtype] if sizes.op != "nearest" else {"index": 0.0}
        records += [
            {
                "problem": few.text(),
                "case": case,
                "what": what,
                "error": value,
                "gate": gates[what],
                "passed": value <= gates[what],
            }
            for what, value in found.items()
        ]
        if sizes.op == "nearest":
            break
    return records


def _results(problem: Problem, name: str, inputs: Inputs) -> dict[str, Tensor]:
    inputs.forget()
    out = problem.losses[name](inputs)
    if problem.sizes.op == "nearest":
        return {"index": out}
    out.backward()  # type: ignore[no-untyped-call]
    found = _gradients(inputs) | {"loss": out.detach()}
    inputs.forget()
    return found


def _expected(sizes: Sizes, inputs: Inputs) -> dict[str, Tensor]:
    exact = [x.detach().double() for x in inputs.embeddings]
    if sizes.op == "nearest":
        return {"index": nearest(exact[0], exact[1:], impl="reference")[1][:, 0]}
    leaves = [x.requires_grad_() for x in exact]
    scale = inputs.scale.detach().double().requires_grad_()
    if sizes.op == "nce":
        loss = nce(leaves[0], leaves[1], scale, impl="reference", check=False)
    else:
        loss = ova(leaves, scale, impl="reference", check=False)
    loss.backward()  # type: ignore[no-untyped-call]
    return _gradients(Inputs(leaves, scale)) | {"loss": loss.detach()}


def _gradients(inputs: Inputs) -> dict[str, Tensor]:
    grads = {f"embedding {i}": x.grad for i, x in enumerate(inputs.embeddings)}
    grads["scale"] = inputs.scale.grad
    return {name: g for name, g in grads.items() if g is not None}


def _relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm().clamp(min=1e-300))
