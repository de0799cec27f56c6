"""SLURM: is it there, does it answer, and what does it allow."""

from __future__ import annotations

import re
import shutil

from outmodal.errors import UserError
from outmodal.launch.doctor.line import Line
from outmodal.launch.slurm.cluster import ask, read_partitions


def slurm_lines() -> list[Line]:
    """Reachability, partitions, requeueing and accounting; one line where there is no SLURM."""
    path = shutil.which("sbatch")
    if path is None:
        return [Line("SLURM", "ok", "no sbatch on the path: only `outmodal submit` wants it")]
    try:
        config = ask("scontrol", "show", "config")
        partitions = read_partitions()
    except UserError as error:
        return [Line("SLURM", "warning", path, str(error))]
    values = dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", config, re.MULTILINE))
    found = f"{values.get('SLURM_VERSION', '?')}, cluster {values.get('ClusterName', '?')}"
    shown = ", ".join(
        f"{p.name} ({len(p.nodes)} nodes, {sum(n.gpus for n in p.nodes)} GPUs)"
        for p in partitions.values()
    )
    up = any(p.up for p in partitions.values())
    return [
        Line("SLURM", "ok", f"{found}; {shown}")
        if up
        else Line("SLURM", "warning", f"{found}: no partition is up", "ask the site's staff"),
        _requeue(values),
        _accounting(values),
    ]


def _requeue(values: dict[str, str]) -> Line:
    if values.get("JobRequeue") == "1":
        return Line("SLURM requeue", "ok", "jobs go back into the queue")
    remedy = "submit asks for it (--requeue); where the site refuses, submit again by hand"
    return Line("SLURM requeue", "warning", "off by default (JobRequeue=0)", remedy)


def _accounting(values: dict[str, str]) -> Line:
    kind = values.get("AccountingStorageType", "").removeprefix("accounting_storage/")
    if kind in ("", "none", "(null)"):
        found = "none: finished jobs are known to scontrol for some minutes only"
        return Line("SLURM accounting", "ok", found)
    return Line("SLURM accounting", "ok", kind)
