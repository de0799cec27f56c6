"""From what a user asks for to a submitted job: fill in, check, write, submit, follow."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from outmodal.data.manifest import EMBEDDED, MANIFEST, Dataset
from outmodal.data.mixture import Mixture
from outmodal.data.opening import open_data
from outmodal.data.plan import check_split
from outmodal.data.store_config import pipes_allowed
from outmodal.data.stream import resolve_streams
from outmodal.errors import UserError
from outmodal.launch.cli import Outcome
from outmodal.launch.code import FLAGS, OPTION, code_allowed
from outmodal.launch.commands.submit import SubmitArgs
from outmodal.launch.commands.train import take_option
from outmodal.launch.config import RunConfig, dump_config, load_config, resolved_out
from outmodal.launch.slurm.cluster import (
    NoAnswer,
    ask,
    check_request,
    read_partitions,
    seconds,
)
from outmodal.launch.slurm.follow import follow
from outmodal.launch.slurm.profile import Profile, load_profile
from outmodal.launch.slurm.script import Job, render
from outmodal.train.methods.outside import OutsideSettings
from outmodal.train.runfolder import changed_keys, untouched_keys

_log = logging.getLogger(__name__)


def submit_training(recipe: str, options: SubmitArgs, overrides: Sequence[str]) -> Outcome:
    """Submit the training of a recipe.

    Raises:
        UserError: Whatever can be known beforehand to be wrong; nothing is submitted then.
    """
    if options.array:
        raise UserError("--array is for the cells of a table: outmodal submit reproduce TABLE ...")
    profile = load_profile(options.profile)
    config = load_config(recipe, overrides)
    run = resolved_out(config, recipe)
    config = config.model_copy(update={"out": str(run)})
    base, files = _free_name(run), _files(config)
    dataset = open_data(config.data)
    job = _job(
        options,
        profile,
        arguments=("train", f"{base}.yaml", "--out", str(run), *_code(files, base), *_pipes()),
        run=run,
        name=options.name or Path(recipe).stem,
        workers=config.data.workers,
        reads=_manifest(config, dataset),
        done=str(run / "result.json"),
    )
    check_ranks(config, dataset, run, job.ranks)
    _check_goes_on(config, run)
    return _submit(job, profile, options, base, files)


def submit_table(options: SubmitArgs, arguments: Sequence[str]) -> Outcome:
    """Submit the cells of `outmodal reproduce` as a job array.

    Raises:
        UserError: No --out, no --array, or what the cluster cannot run.
    """
    profile = load_profile(options.profile)
    out, rest = take_option(list(arguments), "--out")
    if not out or not options.array:
        raise UserError(
            "outmodal submit reproduce TABLE wants --out FOLDER and the numbers of the cells, "
            "--array 0-11 for instance"
        )
    folder = Path(out).absolute()
    job = _job(
        options,
        profile,
        arguments=("reproduce", *rest, "--out", str(folder), *_allowed(), *_pipes()),
        run=folder,
        name=options.name or "reproduce",
        workers=0,
        reads=(),
        done="",
    )
    return _submit(job, profile, options, _free_name(folder), {})


def _files(config: RunConfig) -> dict[str, bytes]:
    """What lies beside the script, by suffix: the configuration, and a copy of the code of a method
    from outside, so that a job in the queue does not notice changes of either."""
    files = {".yaml": dump_config(config).encode()}
    if isinstance(config.method, OutsideSettings):
        files[".py"] = config.method.source
    return files


def _code(files: Mapping[str, bytes], base: Path) -> tuple[str, ...]:
    """The copy of the code is what the job's command names."""
    return (OPTION, f"{base}.py") if ".py" in files else ()


def _allowed() -> tuple[str, ...]:
    """What this command was allowed, the job's command is too."""
    return (FLAGS[0],) if code_allowed() else ()


def _pipes() -> tuple[str, ...]:
    """As `_allowed`, of addresses."""
    return ("--allow-pipe",) if pipes_allowed() else ()


def check_ranks(config: RunConfig, dataset: Dataset, run: Path, ranks: int) -> None:
    """Refuse ranks that cannot share the streams, by the rules that the run itself follows.

    Raises:
        UserError: Names the key and the nearest value that works.
    """
    data = config.data
    piece = data.batch // config.engine.accumulate
    sizes = [shard.samples for shard in dataset.split(data.train_split).shards]
    recorded = run / "streams.json"
    if recorded.is_file():
        streams = int(json.loads(recorded.read_text("utf-8"))["streams"])
        data = data.model_copy(update={"streams": streams})
    streams = resolve_streams(data, sizes, piece, ranks)
    check_split(data.train_split, sizes, streams, piece, ranks * max(1, data.workers))


def _job(
    options: SubmitArgs,
    profile: Profile,
    *,
    arguments: tuple[str, ...],
    run: Path,
    name: str,
    workers: int,
    reads: tuple[str, ...],
    done: str,
) -> Job:
    """The job with the profile's defaults filled in."""
    given = options.gpus_per_node
    gpus = profile.gpus_per_node if given is None else given
    cpus = profile.cpus_per_task if options.cpus_per_task is None else options.cpus_per_task
    if options.nodes < 1 or gpus < 0 or options.tasks_per_node < 0 or cpus < 0:
        raise UserError("--nodes wants 1 or more, the other counts 0 or more")
    return Job(
        arguments=arguments,
        run=run,
        name=re.sub(r"[^A-Za-z0-9_.-]", "-", name),
        nodes=options.nodes,
        tasks_per_node=options.tasks_per_node or max(1, gpus),
        gpus_per_node=gpus,
        cpus_per_task=cpus or (workers + 1 if workers else 0),
        partition=options.partition or profile.partition,
        account=options.account or profile.account,
        qos=options.qos or profile.qos,
        time=options.time or profile.time,
        array=options.array,
        folder=Path.cwd(),
        reads=reads,
        done=done,
    )


def _manifest(config: RunConfig, dataset: Dataset) -> tuple[str, ...]:
    """What every node has to read; nothing of what comes with the package or over the network."""
    named = [(config.data.path, dataset)]
    if isinstance(dataset, Mixture):
        named = [(source.config.path, source.dataset) for source in dataset.sources]
    folders = [one.store.folder for path, one in named if path != EMBEDDED]
    return tuple(str(folder / MANIFEST) for folder in folders if folder is not None)


def _check_goes_on(config: RunConfig, run: Path) -> None:
    path = run / "config.yaml"
    if path.is_file():
        text = dump_config(config)
        changed = changed_keys(path.read_text("utf-8"), text, untouched_keys(config))
        if changed:
            raise UserError(
                f"run {run} was started with other values: {'; '.join(changed)}. Use the same "
                "values to go on, or another folder (--out) for a new run"
            )


def _check_cluster(job: Job, profile: Profile) -> None:
    """What SLURM would refuse, or hold in the queue for ever."""
    limit = seconds(job.time) if job.time else None
    if limit is not None and limit <= profile.grace:
        raise UserError(
            f"--time {job.time} is not longer than the profile's grace of {profile.grace} s before "
            "the limit, so the job would stop as soon as it begins: ask for more time, or set "
            "grace in the SLURM profile"
        )
    ask("sbatch", "--version")
    check_request(job, read_partitions())


def _check_if_there(job: Job, profile: Profile) -> None:
    """As `_check_cluster`, but a script can be written away from the cluster: where SLURM is not
    installed, and where it is without being set up."""
    if not shutil.which("sbatch"):
        return
    try:
        _check_cluster(job, profile)
    except NoAnswer as error:
        _log.warning("the script was not checked against a cluster: %s", error)


def _free_name(run: Path) -> Path:
    """RUN/slurm/NNN, without a suffix, that no earlier submission took."""
    folder = run / "slurm"
    taken = [int(p.stem) for p in folder.glob("*.sbatch") if p.stem.isdigit()]
    return folder / f"{max(taken, default=0) + 1:03d}"


def _submit(
    job: Job, profile: Profile, options: SubmitArgs, base: Path, files: Mapping[str, bytes]
) -> Outcome:
    script = render(job, profile)
    if options.dry_run:
        _check_if_there(job, profile)
        return Outcome({"script": script, "run": str(job.run), "ranks": job.ranks}, script)
    _check_cluster(job, profile)
    if options.follow and job.array:
        raise UserError("--follow shows one job, not an array: leave it out, and look at squeue")
    path = _written(base, script, files)
    number = int(ask("sbatch", "--parsable", str(path)).split(";")[0])
    logs = base.parent / f"job-{number}.log"
    data = {"job": number, "run": str(job.run), "script": str(path), "log": str(logs)}
    if not options.follow:
        return Outcome(data, f"job {number} submitted: {path}\nlog: {logs}")
    end = follow(number, [base.parent / f"job-{number}-rank-0.log", logs])
    return Outcome({**data, "state": end.state, "exit_code": end.code}, "", end.code)


def _written(base: Path, script: str, files: Mapping[str, bytes]) -> Path:
    """Write the script and what it reads beside the logs; the folder has to be writable anyway."""
    path = base.with_suffix(".sbatch")
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        for suffix, content in {**files, path.suffix: script.encode()}.items():
            with base.with_suffix(suffix).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"cannot write the run folder {base.parent.parent}: {error.strerror or error}; free "
            "space there or choose another with --out"
        ) from None
    return path
