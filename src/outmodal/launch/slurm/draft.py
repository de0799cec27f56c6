"""A first draft of a site's profile, from what the cluster says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from outmodal.errors import UserError
from outmodal.launch.slurm.cluster import Partition, read_partitions
from outmodal.launch.slurm.profile import default_path

_TEXT = """\
# What every job of `outmodal submit` asks for on this cluster. Options of the command go before
# the first group. Drafted from sinfo and scontrol: look through it once.
partition: {partition}  # {partitions}
account: ''      # what `sacctmgr show associations user=$USER` lists, where jobs need one
qos: ''
time: {time}
gpus_per_node: {gpus}
cpus_per_task: {cpus}

# modules: [cuda]
# environment: {{NCCL_SOCKET_IFNAME: ib0}}
# setup: ['source /shared/venv/bin/activate']
# container: [apptainer, exec, --nv, /images/outmodal.sif]
# directives: ['--exclusive']
signal: step     # batch, where the site signals only the batch shell
grace: 300       # seconds before the time limit
retries: 2       # after failures without a new checkpoint
"""


def draft_profile(partitions: Mapping[str, Partition]) -> str:
    """YAML for the partition with the most GPUs, or the default one where none has any."""
    if not partitions:
        raise UserError("the cluster shows no partition: ask its administrators for access")
    best = max(partitions.values(), key=lambda p: (_gpus(p), p.default, p.name))
    gpus = _gpus(best)
    cores = min((node.cpus for node in best.nodes if node.gpus >= gpus), default=0)
    limit = best.max_seconds
    return _TEXT.format(
        partition=yaml.safe_dump(best.name).split("\n")[0],
        partitions="of " + ", ".join(sorted(partitions)),
        time=f"'{_span(limit)}'",
        gpus=gpus,
        cpus=cores // gpus if gpus else 0,
    )


def _span(limit: int | None) -> str:
    """Days-hours:minutes:seconds; a day where the partition has no limit."""
    left = 86400 if limit is None else limit
    days, left = divmod(left, 86400)
    return f"{days}-{left // 3600:02}:{left // 60 % 60:02}:{left % 60:02}"


def _gpus(partition: Partition) -> int:
    return max((node.gpus for node in partition.nodes), default=0)


def write_draft_profile(path: Path | None = None) -> Path:
    """Write the draft to `path`, or to where profiles are looked for, and return where.

    Raises:
        UserError: There is one already, the cluster does not answer, or the file cannot be written.
    """
    target = path or default_path()
    if target.exists():
        raise UserError(f"there is a SLURM profile already, {target}: edit it, or remove it first")
    text = draft_profile(read_partitions())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the SLURM profile {target}: {error.strerror}") from None
    return target
