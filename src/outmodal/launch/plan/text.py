"""An estimate as JSON, and as a page for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from outmodal.launch.plan.estimate import Estimate, interval_steps
from outmodal.launch.plan.memory import Memory

_GB, _MB = 1e9, 1e6
_PARTS = ("weights", "gradients", "optimizer", "activations", "frozen", "inputs")


def as_data(found: Estimate) -> dict[str, Any]:
    """The estimate as JSON-able values: bytes, seconds, rates."""
    machine = found.machine
    return {
        "gpu": machine.gpu.name,
        "nodes": machine.nodes,
        "gpus_per_node": machine.per_node,
        "usable_bytes": machine.usable,
        "parameters": found.parameters,
        "batch": found.batch,
        "rows_per_pass": found.rows,
        "passes_per_step": found.passes,
        "memory": [_memory(m, machine.usable) for m in found.options],
        "chosen": _memory(found.chosen, machine.usable),
        "fits": found.fits,
        "proposal": found.proposal
        and {
            "change": found.proposal.change,
            "memory": _memory(found.proposal.memory, machine.usable),
        },
        "wire_bytes": asdict(found.wire) | {"total": found.wire.total},
        "step_seconds": asdict(found.step) | {"total": found.step.seconds},
        "samples_per_second": found.samples_per_second,
        "utilisation": found.utilisation,
        "steps": found.steps,
        "hours": found.hours,
        "gpu_hours": found.hours * machine.size,
        "epoch": asdict(found.use) | {"used": found.use.used, "dropped": found.use.dropped},
        "loader": asdict(found.loading),
        "checkpoint": asdict(found.survival) | {"interval_steps": interval_steps(found)},
    }


def _memory(memory: Memory, usable: float) -> dict[str, Any]:
    return {
        "strategy": memory.strategy,
        "activation_checkpointing": memory.checkpointed,
        **memory.parts,
        "total": memory.total,
        "fits": memory.total <= usable,
    }


def as_text(found: Estimate) -> str:
    """The estimate as a page."""
    lines = [_heading(found), "", *_memory_table(found), "", *_verdict(found), ""]
    return "\n".join(lines + _rates(found) + ["", *_assumed(found)])


def _heading(found: Estimate) -> str:
    m = found.machine
    return (
        f"{found.parameters / 1e6:.1f} M trainable parameters on {m.nodes} x {m.per_node} "
        f"{m.gpu.name}: batch {found.batch} = {m.size} GPUs x {found.rows} rows"
        + (f" x {found.passes} passes" if found.passes > 1 else "")
    )


def _memory_table(found: Estimate) -> list[str]:
    head = "".join(f"{name:>13}" for name in (*_PARTS, "total"))
    lines = [f"{'GB on each GPU':<26}{head}"]
    for m in found.options:
        name = m.strategy + (" + checkpointing" if m.checkpointed else "")
        mark = "" if m.total <= found.machine.usable else "  does not fit"
        cells = "".join(f"{m.parts[part] / _GB:13.2f}" for part in _PARTS)
        lines.append(f"{name:<26}{cells}{m.total / _GB:13.2f}{mark}")
    return lines


def _verdict(found: Estimate) -> list[str]:
    usable, chosen = found.machine.usable / _GB, found.chosen
    if found.fits:
        share = 100 * chosen.total / found.machine.usable
        lines = [f"{chosen.strategy} fits: {share:.0f} % of the {usable:.0f} GB that tensors have"]
    elif found.proposal:
        lines = [
            f"warning: {chosen.strategy} does not fit into {usable:.0f} GB; this does "
            f"({found.proposal.memory.total / _GB:.1f} GB): {found.proposal.change}",
            "what follows is of the recipe as it stands, as if it fitted",
        ]
    else:
        lines = [
            f"warning: {chosen.strategy} does not fit into {usable:.0f} GB, and no strategy, "
            "checkpointing or smaller pass makes it: take more GPUs, larger ones, or a smaller "
            "learner"
        ]
    return lines + _warnings(found)


def _warnings(found: Estimate) -> list[str]:
    step, machine = found.step, found.machine
    lines = []
    if step.exposed > 0.2 * step.seconds:
        lines.append(
            f"warning: {100 * step.exposed / step.seconds:.0f} % of a step waits for the wires: "
            "a larger data.batch, fewer nodes or a faster interconnect"
        )
    if found.loading.cores > 8 * machine.per_node:
        lines.append(
            f"warning: the loader needs {found.loading.cores:.0f} cores a node: smaller stored "
            "samples, cached features, or slower steps"
        )
    return lines


def _rates(found: Estimate) -> list[str]:
    step, wire, load, kept = found.step, found.wire, found.loading, found.survival
    source = "timed here" if load.measured else "assumed"
    return [
        f"step            {step.seconds * 1e3:.1f} ms: {step.compute * 1e3:.1f} compute, "
        f"{step.update * 1e3:.1f} optimizer, {step.exposed * 1e3:.1f} waiting for wires",
        f"wire            {wire.total / _MB:.1f} MB a GPU and step: gradients "
        f"{wire.reduce / _MB:.1f}, weights {wire.weights / _MB:.1f}, objective "
        f"{wire.objective / _MB:.1f}",
        f"rate            {found.samples_per_second:,.0f} samples/s, "
        f"{100 * found.utilisation:.0f} % of the GPUs' bf16 rate",
        f"run             {found.steps:,} steps, {found.hours:,.1f} h, "
        f"{found.hours * found.machine.size:,.0f} GPU hours",
        f"epoch           {found.use.sentence().removeprefix('an epoch ')}",
        f"loader          {load.cores:.1f} cores a node at {load.per_core:,.0f} samples/s each "
        f"({source}); {load.bytes_per_second / _MB:,.0f} MB/s from the storage",
        f"checkpoints     {kept.bytes / _GB:.2f} GB, stall {kept.stall:.2f} s; best every "
        f"{kept.interval / 60:,.0f} min (--engine.checkpoint_every {interval_steps(found)}); "
        f"{100 * kept.overhead:.2f} % lost",
    ]


def _assumed(found: Estimate) -> list[str]:
    m = found.machine
    hours = found.survival.between_failures / 3600
    return [
        f"assumed: {100 * m.reach:.0f} % of the data sheet's arithmetic, {100 * m.slack:.0f} % of "
        f"memory lost to fragments, {m.reserve / _GB:.1f} GB for context and libraries, a failure "
        f"of the job every {hours:,.0f} h"
    ]
