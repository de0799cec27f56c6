"""Compile every shipped configuration of the Triton kernels ahead of time and count what came out.

No GPU is needed: the primitives are called on small CPU tensors with their launches recorded
instead of run, each launch is compiled for the target with the types, alignments and constants it
would run with, and the machine code is read back with the disassembler of Triton's wheel.

Spills, shared memory above the limit, or a product that fell back to scalar arithmetic are silent
on a GPU (only slow), so a test asserts their absence on every version of Triton that is supported.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from outmodal.errors import UserError
from outmodal.models.kernels.ova_tiled import Form

# Bytes of shared memory that one program may use.
SHARED_LIMIT = {"sm_90": 232448}
# Sizes of the recorded calls: aligned as a real batch is, otherwise of no consequence.
ROWS = 512
# (type, d, masks): every tile of every type; fp16 differs from bf16 in the name only.
NCE_CONFIGURATIONS = [
    (torch.bfloat16, 256, False),
    (torch.bfloat16, 256, True),
    (torch.bfloat16, 512, False),
    (torch.bfloat16, 512, True),
    (torch.float32, 512, True),
]
# (type, form, J, everything: masks, totals and constants). All J with everything on, which needs
# the most registers, and without anything the one of three modalities.
OVA_CONFIGURATIONS: list[tuple[torch.dtype, Form, int, bool]] = [
    *((torch.bfloat16, "projection", j, True) for j in (1, 2, 3, 4, 5)),
    *((torch.bfloat16, "volume", j, True) for j in (2, 3, 4, 5)),
    (torch.bfloat16, "area", 2, True),
    (torch.bfloat16, "projection", 2, False),
    (torch.float32, "projection", 4, True),
    (torch.float32, "projection", 5, True),
]


@dataclass(frozen=True)
class Row:
    """One compiled configuration. spills counts local loads and stores in the machine code."""

    name: str
    triton: str
    registers: int
    stack: int
    spills: int
    shared: int
    hgmma: int
    ffma: int
    async_copies: int
    tma: int

    def problems(self, arch: str = "sm_90") -> list[str]:
        """What keeps this configuration from being shipped."""
        checks = {
            "spills registers": self.spills > 0,
            "too much shared memory": self.shared > SHARED_LIMIT[arch],
            "no matrix instructions": self.hgmma == 0,
            "no asynchronous copies": self.async_copies + self.tma == 0,
        }
        return [problem for problem, found in checks.items() if found]


def audit(arch: str = "sm_90") -> list[Row]:
    """Compile all shipped configurations for `arch` (only sm_90).

    Raises:
        UserError: Triton is absent or too old, another architecture, or the kernels were defined
            for the interpreter.
    """
    if arch not in SHARED_LIMIT:
        raise UserError(f"audit: no limits are known for {arch!r}; expected sm_90")
    try:
        from outmodal.models.kernels import common_triton as common
    except ImportError as error:
        raise UserError(
            f"audit: Triton does not import ({error}); install it: pip install 'outmodal[cuda]'"
        ) from error
    if common.INTERPRETING:
        raise UserError("audit: unset TRITON_INTERPRET: interpreted kernels cannot be compiled")
    kernels: dict[str, Any] = {}
    for name, call in calls():
        with common.recording() as launches:
            call()
        assert launches, name
        for x in launches:
            kernels.setdefault(f"{name}[{configuration(x)}]", x)
    return [compiled(name, launch, arch) for name, launch in kernels.items()]


def configuration(launch: Any) -> str:
    """What tells apart two compiled forms of a kernel: number format, tile, masks."""
    c = launch.constants
    dtype = argument_type(launch.args["q"]).split("<")[1].split("[")[0]
    tile = f"{c['BM']}x{c['BN']}x{c['BK']} warps {launch.warps} stages {launch.stages}"
    planes = "".join(f" {name} {c[name]}" for name in ("J", "KEEP") if name in c)
    return f"{dtype}{planes} {tile}" + (" masked" if c.get("MASKED") else "")


def calls() -> list[tuple[str, Callable[[], object]]]:
    """(name, a call of a primitive) for every shipped configuration."""
    return [*nce_calls(), *ova_calls(), *nearest_calls()]


def nce_calls() -> list[tuple[str, Callable[[], object]]]:
    from outmodal.models.kernels import nce_triton

    one, ones = torch.ones(1), torch.ones(ROWS)
    found: list[tuple[str, Callable[[], object]]] = []
    for dtype, d, masked in NCE_CONFIGURATIONS:
        x, live = torch.zeros(ROWS, d, dtype=dtype), ones.bool() if masked else None
        for name, rest in (
            ("sums", (False,)),
            ("grads", (ones, ones, None, None, ones)),
            ("sigmoid_sums", ()),
            ("sigmoid_grads", (ones,)),
        ):
            call = partial(getattr(nce_triton, name), x, x, one, one, 0, live, live, *rest)
            found.append((f"nce.{name}", call))
    return found


def ova_calls() -> list[tuple[str, Callable[[], object]]]:
    from outmodal.models.kernels import ova_triton

    one, ones = torch.ones(1), torch.ones(ROWS)
    found: list[tuple[str, Callable[[], object]]] = []
    for dtype, form, j, everything in OVA_CONFIGURATIONS:
        z, basis = torch.zeros(ROWS, 512, dtype=dtype), torch.zeros(j, ROWS, 512, dtype=dtype)
        live = ones.bool() if everything else None
        flat = ones if everything else None
        gain = None if form == "projection" else ones
        begin = (z, basis, gain, one, one, 0, live, live, form)
        for name, rest in (("sums", (everything,)), ("grads", (ones, ones, flat, flat, ones))):
            if name == "sums" and j not in (2, 5):
                continue  # a loop over the planes: its length changes nothing
            call = partial(getattr(ova_triton, name), *begin, *rest)
            found.append((f"ova.{name}.{form}", call))
    return found


def nearest_calls() -> list[tuple[str, Callable[[], object]]]:
    from outmodal.models.kernels import nearest_triton
    from outmodal.models.kernels.nearest_tiled import Problem

    z = torch.zeros(ROWS, 512)
    problem = Problem.of(z, [z, z, z], None)
    return [
        ("nearest.candidates", partial(nearest_triton.candidates, problem, z, keep))
        for keep in (4, nearest_triton.MOST_KEPT)
    ]


def signature(launch: Any) -> dict[str, str]:
    """Type of each argument, as Triton writes it."""
    types = {name: argument_type(value) for name, value in launch.args.items()}
    types |= dict.fromkeys(launch.constants, "constexpr")
    assert set(types) == set(launch.kernel.arg_names), launch.kernel.__name__
    return {name: types[name] for name in launch.kernel.arg_names}


def argument_type(value: Any) -> str:
    names = {
        torch.bfloat16: "bf16",
        torch.float16: "fp16",
        torch.float32: "fp32",
        torch.uint8: "u8",
        torch.int32: "i32",
        torch.int64: "i64",
    }
    if isinstance(value, int):
        # The launcher compiles an argument of 1 as a constant; the audited form does without.
        return "i32"
    if isinstance(value, torch.Tensor):
        return f"*{names[value.dtype]}"
    return f"tensordesc<{names[value.base.dtype]}{list(value.block_shape)}>"


def aligned(value: Any) -> bool:
    """Whether the launcher would tell the compiler that the argument is a multiple of 16."""
    return isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)


def compiled(name: str, launch: Any, arch: str) -> Row:
    """Compile one launch and count."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = signature(launch)
    where = [i for i, arg in enumerate(types) if aligned(launch.args.get(arg))]
    source = ASTSource(
        fn=launch.kernel,
        signature=types,
        constexprs=launch.constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in where},
    )
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    binary = triton.compile(source, target=target, options=options)
    code = disassembled(binary.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", code)
    assert found, code[:1000]
    return Row(
        name=name,
        triton=triton.__version__,
        registers=int(found[1]),
        stack=int(found[2]),
        spills=len(re.findall(r"\b(?:LDL|STL)", code)),
        shared=binary.metadata.shared,
        hgmma=code.count("HGMMA"),
        ffma=code.count("FFMA"),
        async_copies=code.count("LDGSTS"),
        tma=code.count("UTMALDG"),
    )


def disassembled(cubin: bytes) -> str:
    """Resource usage and machine code as the wheel's disassembler prints them."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
