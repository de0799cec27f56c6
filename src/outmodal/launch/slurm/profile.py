"""What a site wants in every job: a small YAML file, read once and quoted into the script.

    partition: gpu
    account: vision
    modules: [cuda/12.8]
    environment: {NCCL_SOCKET_IFNAME: ib0}
    container: [apptainer, exec, --nv, /images/outmodal.sif]

It is looked for in $OUTMODAL_SLURM_PROFILE, then in ~/.config/outmodal/slurm.yaml; without one the
site needs nothing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from outmodal.base import Config
from outmodal.errors import UserError
from outmodal.launch.recipe import Recipe, explain

VARIABLE = "OUTMODAL_SLURM_PROFILE"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Profile(Config):
    """A site's habits. Options of `outmodal submit` go before the values of the first group.

    Attributes:
        partition, account, qos, time: As sbatch reads them; "" leaves it to the site.
        gpus_per_node, cpus_per_task: Defaults of the options; 0 asks for none, or leaves it.
        gpu_type: Kind of GPU where a partition has several, h200 for instance.
        gpu_request: How the site wants GPUs to be asked for: `--gpus-per-node` or `--gres`.
        directives: More options of sbatch, one a line, "--constraint=ib" for instance.
        modules: What to `module load` before anything else.
        environment: Variables to export.
        setup: Lines of bash that come after them, as they are.
        container: Command in front of every task that enters a container.
        srun: More options of the srun that starts the ranks.
        command: How to call outmodal; empty is this Python, or `outmodal` in a container.
        signal: Whom the site signals before the time limit: the ranks (step) or only the batch
            shell, which passes it on (batch).
        grace: Seconds before the time limit at which the signal comes.
        wait: Seconds that the other ranks have after the first has left.
        retries: How often in a row a job that failed without a new checkpoint is queued again.
        requeue: Queue the job again when it stopped early.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""
    gpus_per_node: int = Field(default=0, ge=0)
    cpus_per_task: int = Field(default=0, ge=0)
    gpu_type: str = ""
    gpu_request: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    directives: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    setup: tuple[str, ...] = ()
    container: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    signal: Literal["step", "batch"] = "step"
    grace: int = Field(default=300, ge=1, le=65535)
    wait: int = Field(default=60, ge=1)
    retries: int = Field(default=2, ge=0)
    requeue: bool = True

    @field_validator("time", mode="before")
    @classmethod
    def _in_quotes(cls, value: object) -> object:
        if isinstance(value, int):
            raise ValueError("YAML reads a time as a number: put it in quotes, '12:00:00'")
        return value

    @field_validator("environment")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"'{name}' is no name of a variable")
        return value


def default_path() -> Path:
    """Where the profile is looked for."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path.home() / ".config" / "outmodal" / "slurm.yaml"


def load_profile(path: Path | None = None) -> Profile:
    """Read a site's profile; the empty one where no file is named and the default is absent.

    Raises:
        UserError: A file that was named does not exist, or a key or value is wrong (file, line,
            key and remedy).
    """
    chosen = path or default_path()
    if not chosen.is_file():
        if path is None and VARIABLE not in os.environ:
            return Profile()
        raise UserError(
            f"there is no SLURM profile {chosen}: give a YAML file with --profile or ${VARIABLE}, "
            "or leave both out"
        )
    try:
        raw = Recipe.from_text(chosen.read_text(encoding="utf-8"), str(chosen))
    except OSError as error:
        raise UserError(f"cannot read {chosen}: {error.strerror}") from None
    try:
        return Profile.model_validate(raw.values)
    except ValidationError as error:
        raise UserError(explain(error, raw, Profile)) from None
