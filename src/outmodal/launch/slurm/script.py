"""The sbatch script of a job, by one pure function from a job and a site's profile."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from outmodal.errors import UserError
from outmodal.launch.slurm.profile import Profile

_WORD = re.compile(r"[A-Za-z0-9_.,:+/@%-]+")  # what a name of SLURM may hold
_OPTION = re.compile(r"-[A-Za-z0-9_.,:+/@%=\[\]()&|* -]*")
_PLACE = re.compile(r"^([ ]*)@([a-z_]+)@$", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """What a user asks for, after the profile's defaults are filled in.

    Attributes:
        arguments: The command line after `outmodal`, ("train", RECIPE, ...) for instance.
        run: The run's folder; logs go to RUN/slurm.
        name: Name of the job.
        nodes, tasks_per_node: Ranks are nodes x tasks_per_node.
        gpus_per_node: 0 for a job on CPUs.
        cpus_per_task: 0 leaves it to the site.
        partition, account, qos, time: "" leaves it to the site.
        array: Index expression of a job array, "0-11%4"; each task of it gets `--cell INDEX`.
        folder: Working directory.
        reads: Paths that every node has to see.
        done: File that exists once the command has finished its work; "" where there is none.
    """

    arguments: tuple[str, ...]
    run: Path
    name: str
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 0
    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""
    array: str = ""
    folder: Path = Path("/")
    reads: tuple[str, ...] = ()
    done: str = ""

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.nodes * self.tasks_per_node


def render(job: Job, profile: Profile) -> str:
    """The text of the script that runs a job.

    Everything that comes from outside is checked against what SLURM's options may hold, or
    quoted for bash; only `setup` of the profile is bash as it stands.

    Raises:
        UserError: A name, time, array or path that a directive cannot hold.
    """
    log = f"{job.run}/slurm/job-{'%A-%a' if job.array else '%j'}"
    parts = {
        "directives": _directives(job, profile, log),
        "settings": _settings(job, profile),
        "environment": _environment(profile),
    }
    template = (resources.files("outmodal.slurm") / "job.sbatch").read_text(encoding="utf-8")
    return _filled(template, parts)


def _filled(template: str, parts: Mapping[str, Sequence[str]]) -> str:
    """Replace each line `@name@` by the lines of that part."""
    text = _PLACE.sub(lambda m: "\n".join(m[1] + line for line in parts[m[2]]), template)
    return re.sub(r"\n{3,}", "\n\n", text)


def _directives(job: Job, profile: Profile, log: str) -> list[str]:
    whom = "B:" if profile.signal == "batch" else ""
    options = {
        "job-name": _word("name", job.name),
        "partition": _word("partition", job.partition),
        "account": _word("account", job.account),
        "qos": _word("qos", job.qos),
        "time": _word("time", job.time),
        "nodes": str(job.nodes),
        "ntasks-per-node": str(job.tasks_per_node),
        "cpus-per-task": str(job.cpus_per_task or ""),
        **_gpus(job, profile),
        "array": _word("array", job.array),
        "chdir": _path(job.folder),
        "output": _path(Path(f"{log}.log"), patterns=True),
        "open-mode": "append",
        "signal": f"{whom}USR1@{profile.grace}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value]
    lines.append("#SBATCH --requeue" if profile.requeue else "#SBATCH --no-requeue")
    return lines + [f"#SBATCH {_option(text)}" for text in profile.directives]


def _gpus(job: Job, profile: Profile) -> dict[str, str]:
    if not job.gpus_per_node:
        return {}
    kind = f"{_word('gpu_type', profile.gpu_type)}:" if profile.gpu_type else ""
    if profile.gpu_request == "gres":
        return {"gres": f"gpu:{kind}{job.gpus_per_node}"}
    return {"gpus-per-node": f"{kind}{job.gpus_per_node}"}


def _settings(job: Job, profile: Profile) -> list[str]:
    """Variables at the head of the script: what differs from job to job."""
    own = ("outmodal",) if profile.container else (sys.executable, "-m", "outmodal")
    command = [*(profile.command or own), *job.arguments]
    cell = ' --cell "$SLURM_ARRAY_TASK_ID"' if job.array else ""
    return [
        f"run={shlex.quote(str(job.run))}",
        f"command=({shlex.join(command)}{cell})",
        f"container=({shlex.join(profile.container)})",
        f"reads=({shlex.join(job.reads)})",
        f"finished={shlex.quote(job.done)}",
        f"options=({shlex.join([f'--wait={profile.wait}', *profile.srun])})",
        f"retries={profile.retries if profile.requeue else 0}",
        f"requeue={int(profile.requeue)}",
    ]


def _environment(profile: Profile) -> list[str]:
    loads = [f"module load {shlex.quote(name)}" for name in profile.modules]
    exports = [f"export {name}={shlex.quote(v)}" for name, v in profile.environment.items()]
    return [*loads, *exports, *profile.setup]


def _word(what: str, value: str) -> str:
    if value and not _WORD.fullmatch(value):
        raise UserError(
            f"{what} {value!r}: SLURM's names and times hold letters, digits and _.,:+/@%- only"
        )
    return value


def _option(text: str) -> str:
    if not _OPTION.fullmatch(text):
        raise UserError(
            f"directive {text!r} of the SLURM profile: write one option of sbatch, "
            "'--constraint=ib' for instance"
        )
    return text


def _path(path: Path, patterns: bool = False) -> str:
    """A path inside quotes of a directive; % begins a pattern there unless it is doubled."""
    text = str(path)
    bad = sorted({c for c in text if c in "\"'\\$`" or not c.isprintable()})
    own = text.rsplit("/", 1)[0] if patterns else text
    if bad or (patterns and "%" in own):
        shown = ", ".join(map(repr, bad)) or "'%'"
        raise UserError(f"{text!r}: the path of a job cannot hold {shown}; choose another (--out)")
    return f'"{text}"'
