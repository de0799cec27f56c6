"""The one training loop, for all methods and all ways to run them.

    for each epoch: method.on_epoch_start -> steps -> evaluation now and then
    each step:      micro-batches -> forward and backward -> guard, clip, optimizer -> EMA -> log

The method decides what is trained; the backend, on how many processes; the feed, from what.
Everything that a resumed run needs is in `Position`, the checkpoint's tensors and the feed's
pure functions, so that it continues bit for bit.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from outmodal.base import Config
from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import StoppedEarly, UserError
from outmodal.train import checkpoint, gather, rng, snapshot
from outmodal.train.backend import Strategy, make_backend
from outmodal.train.checkpoint import CheckpointStore, Snapshot
from outmodal.train.deepspeed_setup import Precision
from outmodal.train.ema import Ema
from outmodal.train.methods.base import Method, Stage
from outmodal.train.metrics import Metrics
from outmodal.train.optim import OptimConfig, mark_idle
from outmodal.train.passes import EnginePasses
from outmodal.train.progress import Progress
from outmodal.train.runfolder import RunFolder, on_main
from outmodal.train.signals import StopRequest

_log = logging.getLogger(__name__)


class EngineConfig(Config):
    """Length, precision, processes and records of a run.

    Attributes:
        epochs: Epochs over all stages.
        max_steps: Stop after this many optimizer steps; 0 is no limit.
        strategy: auto (one process, or ddp for several), single, ddp, or DeepSpeed's ZeRO stage.
        precision: fp32, or bf16 (autocast; under ZeRO also bf16 weights with fp32 masters).
        accumulate: Micro-batches per optimizer step; the batch stays data.batch.
        clip: Largest norm of the gradient; 0 does not clip.
        ema: Decay of an average of the weights, which evaluation and export use; 0 is none.
        compile: Run the method through torch.compile.
        log_every: Steps between lines in metrics.jsonl.
        checkpoint_every: Steps between checkpoints; the last step always has one.
        keep: Checkpoints to keep.
        eval_every: Epochs between evaluations; 0 evaluates only at the end.
        nonfinite_budget: Steps with a gradient that is not finite to pass over in a run.
        device: auto, cpu or cuda.
        timeout: Minutes that a collective waits for another process.
        threads: CPU threads of each process; 0 shares the cores out.
    """

    epochs: int = Field(default=10, ge=1)
    max_steps: int = Field(default=0, ge=0)
    strategy: Literal["auto", "single", "ddp", "zero0", "zero1", "zero2", "zero3"] = "auto"
    precision: Precision = "fp32"
    accumulate: int = Field(default=1, ge=1)
    clip: float = Field(default=1.0, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    compile: bool = False
    log_every: int = Field(default=10, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)
    eval_every: int = Field(default=0, ge=0)
    nonfinite_budget: int = Field(default=3, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    timeout: float = Field(default=10.0, gt=0)
    threads: int = Field(default=0, ge=0)


class Feed(Protocol):
    """Where the engine's batches come from."""

    def epoch(
        self, specs: Sequence[StreamSpec], epoch: int, start_step: int, steps: int
    ) -> Iterator[dict[str, Batch]]:
        """This rank's batches of steps start_step .. steps - 1 of an epoch."""
        ...

    def full_pass(self, spec: StreamSpec) -> Iterator[Batch]:
        """This rank's batches of a pass over every sample of `spec`."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint records of the feed; JSON."""
        ...


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        step: Optimizer steps done.
        epoch: Current epoch.
        epoch_step: Steps done in it.
        started: `on_epoch_start` has run for it.
        skipped: Steps passed over for a gradient that was not finite.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    started: bool = False
    skipped: int = 0


class Engine:
    """Trains one method in one run folder.

    Args:
        method: What to train; built alike on all ranks.
        feed: Where batches come from.
        optim: Optimizer and schedule.
        config: The engine's section.
        folder: The run's folder, held.
        seed: The run's seed.
    """

    def __init__(
        self,
        method: Method,
        feed: Feed,
        optim: OptimConfig,
        config: EngineConfig,
        folder: RunFolder,
        seed: int,
    ) -> None:
        self.method, self.feed, self.optim, self.config = method, feed, optim, config
        self.folder, self.seed = folder, seed
        self.store = CheckpointStore(folder.checkpoints, config.keep)
        self.at = Position()
        self.epoch_steps = method.steps_per_epoch()
        self.total = self._total_steps()
        rng.seed_everything(seed, 0, gather.world().rank)
        optimizer = optim.build(method.param_groups())
        strategy = resolve_strategy(config.strategy)
        self.backend = make_backend(
            method, optimizer, strategy, config.precision, config.clip, config.compile
        )
        self.layout = self.backend.layout
        self.passes = EnginePasses(self.backend, feed.full_pass)
        self.ema = Ema(self.layout, config.ema) if config.ema else None
        self.metrics: Metrics | None = None
        self._saved: int | None = None
        self._clock, self._waited = (time.monotonic(), 0), 0.0

    # --- the loop ----------------------------------------------------------------------------

    def fit(self) -> dict[str, float]:
        """Train to the end, from the newest checkpoint where there is one.

        Returns:
            The method's last evaluation.

        Raises:
            StoppedEarly: A signal asked for it; a checkpoint of the last step is on the disk.
            UserError: Too many gradients were not finite, a full disk, no readable checkpoint.
        """
        self._resume()
        shown = gather.is_main()
        with StopRequest() as stop, Progress(self.total, self.at.step, shown) as progress:
            for epoch in range(self.at.epoch, self.config.epochs):
                self._train_epoch(epoch, stop, progress)
                if self._done():
                    break
                if self.config.eval_every and (epoch + 1) % self.config.eval_every == 0:
                    self._evaluate(epoch)
                self.at = replace(self.at, epoch=epoch + 1, epoch_step=0, started=False)
            self._save()
            result = self._evaluate(self.at.epoch)
        on_main(self._check_writing)
        self.folder.finish(self.at.step, result)
        return result

    def _train_epoch(self, epoch: int, stop: StopRequest, progress: Progress) -> None:
        stage = self._stage(epoch).name
        if not self.at.started:
            self._leave_if(gather.agree(stop.asked))
            logs = self.method.on_epoch_start(epoch, stage, self.passes)
            self._record(epoch, stage, "epoch", logs)
            self.at = replace(self.at, started=True)
        for micro in self._steps(epoch, stage):
            values, leave = self._step(micro, stage, stop)
            progress.advance(f"epoch {epoch + 1}/{self.config.epochs} {stage}", values)
            if values:
                self._record(epoch, stage, "train", values)
            if self.at.step % self.config.checkpoint_every == 0 and not self._done():
                self._save()
            self._leave_if(leave and not self._done())

    def _step(
        self, micro: Sequence[Mapping[str, Batch]], stage: str, stop: StopRequest
    ) -> tuple[dict[str, float], bool]:
        """One optimizer step; returns what to log (nothing on most steps) and whether to stop."""
        lr = self.optim.set_lr(self.layout.optimizer, self.at.step, self.total, self.epoch_steps)
        self.backend.router.train()
        self.backend.start_step()
        losses: list[Tensor] = []
        logs: list[Mapping[str, Tensor]] = []
        for i, batches in enumerate(micro):
            last = i + 1 == len(micro)
            number = self.at.step * len(micro) + i
            loss, shown = self.backend.train_loss(batches, stage, number, last=last)
            self.backend.backward(loss / len(micro), last)
            losses.append(loss.detach())
            logs.append(shown)
        asked, failed, *reached = gather.max_over_ranks(
            [int(stop.asked), int(self._cannot_write()), *self.backend.reached.groups()]
        )
        if failed:
            on_main(self._check_writing)
        mark_idle(self.layout.optimizer, reached)
        taken = self.backend.step()
        self.backend.sync_buffers()
        if taken and self.ema is not None:
            self.ema.update()
        self.at = replace(self.at, step=self.at.step + 1, epoch_step=self.at.epoch_step + 1)
        if not taken:
            self._count_nonfinite()
        return self._values(losses, logs, lr), bool(asked)

    def _steps(self, epoch: int, stage: str) -> Iterator[list[dict[str, Batch]]]:
        """The micro-batches of each step that is left of an epoch, on the device."""
        pieces = self.config.accumulate
        left = self.epoch_steps
        if self.config.max_steps:
            left = min(left, self.config.max_steps - self.at.step + self.at.epoch_step)
        start = self.at.epoch_step
        if left <= start:
            return
        specs = [_piece(spec, pieces) for spec in self.method.streams(stage)]
        batches = self.feed.epoch(specs, epoch, start * pieces, left * pieces)
        device = gather.world().device
        for _ in range(start, left):
            begin = time.monotonic()
            with _generator_untouched():
                micro = [next(batches) for _ in range(pieces)]
            self._waited += time.monotonic() - begin
            moved = [{name: b.to(device) for name, b in piece.items()} for piece in micro]
            if self.metrics and self.at.step == 0:
                self.metrics.show_inputs(micro[0])
            yield moved

    # --- smaller parts -----------------------------------------------------------------------

    def _total_steps(self) -> int:
        planned = sum(stage.epochs for stage in self.method.stages())
        if planned != self.config.epochs:
            raise RuntimeError(
                f"the method's stages have {planned} epochs, the run {self.config.epochs}"
            )
        total = self.epoch_steps * self.config.epochs
        return min(total, self.config.max_steps) if self.config.max_steps else total

    def _stage(self, epoch: int) -> Stage:
        end = 0
        for stage in self.method.stages():
            end += stage.epochs
            if epoch < end:
                return stage
        raise IndexError(epoch)

    def _done(self) -> bool:
        """No step is left (a method without steps still has its epochs)."""
        return self.at.step >= self.total and self.total > 0

    def _leave_if(self, asked: bool) -> None:
        if asked:
            self._save()
            raise StoppedEarly(
                f"stopped on request after step {self.at.step} of {self.total}; checkpoint "
                f"{self.folder.checkpoints / f'step-{self.at.step:08d}'} is complete. Run the "
                "same command again to go on"
            )

    def _count_nonfinite(self) -> None:
        self.at = replace(self.at, skipped=self.at.skipped + 1)
        _log.warning("step %d: the gradient is not finite; passed over", self.at.step)
        if self.at.skipped > self.config.nonfinite_budget:
            raise UserError(
                f"the gradient was not finite at step {self.at.step}, the "
                f"{self.at.skipped}. time, and engine.nonfinite_budget is "
                f"{self.config.nonfinite_budget}: start a new run with a lower optim.lr or a "
                "longer optim.warmup_epochs, or look for bad values with `outmodal data check`"
            )

    def _values(
        self, losses: Sequence[Tensor], logs: Sequence[Mapping[str, Tensor]], lr: float
    ) -> dict[str, float]:
        """Numbers of a step that is logged, else nothing. Reading them waits for the device."""
        step = self.at.step
        if step % self.config.log_every and step not in (1, self.total):
            return {}
        loss = math.fsum(float(t) for t in losses) / len(losses)
        values = {name: math.fsum(float(one[name]) for one in logs) / len(logs) for name in logs[0]}
        values["loss"] = gather.mean_over_ranks([loss])[0]
        return values | {"grad_norm": self.backend.last_norm, "lr": lr}

    def _record(self, epoch: int, stage: str, split: str, values: Mapping[str, float]) -> None:
        if not values or self.metrics is None:
            return
        self.metrics.write(self.at.step, epoch, stage, split, values)
        now = time.monotonic()
        steps = self.at.step - self._clock[1]
        if split == "train" and steps > 0:
            spent = max(now - self._clock[0], 1e-9)
            share = 100 * self._waited / spent
            self.metrics.board(
                self.at.step, {"speed/steps_per_s": steps / spent, "speed/data_wait_%": share}
            )
            self._clock, self._waited = (now, self.at.step), 0.0

    def _cannot_write(self) -> bool:
        return self.metrics is not None and self.metrics.problem is not None

    def _check_writing(self) -> None:
        if self.metrics is not None:
            self.metrics.check()

    def _evaluate(self, epoch: int) -> dict[str, float]:
        epoch = min(epoch, self.config.epochs - 1)
        with self.ema.swapped() if self.ema else contextlib.nullcontext():
            values = self.method.evaluate(self.passes)
        self._record(epoch, self._stage(epoch).name, "eval", values)
        return values

    # --- checkpoints -------------------------------------------------------------------------

    def _save(self) -> None:
        """Write a checkpoint of this step, unless there is one."""
        if self._saved == self.at.step:
            return
        tensors = snapshot.take(self.method, self.layout, self.ema, gather.is_main())
        step = self.at.step
        on_main(lambda: str(self.store.save(step, Snapshot(tensors, self._state()))))
        self._saved = step

    def _state(self) -> dict[str, Any]:
        return asdict(self.at) | {
            "stage": self._stage(min(self.at.epoch, self.config.epochs - 1)).name,
            "feed": self.feed.state(),
            "metrics_bytes": self.metrics.offset() if self.metrics else 0,
            "written_by": {
                "strategy": self.config.strategy,
                "processes": gather.world().size,
                **{p: metadata.version(p) for p in ("torch", "accelerate", "deepspeed")},
            },
        }

    def _resume(self) -> None:
        on_main(self.store.prepare)
        found = on_main(lambda: str(self.store.newest(repair=True) or ""))
        state: Mapping[str, Any] = {}
        if found:
            held = checkpoint.read(self.store.root / found, snapshot.PARTS)
            state = held.state
            self.at = Position(**{f.name: state[f.name] for f in fields(Position)})
            self._saved = self.at.step
            snapshot.put_back(held.tensors, self.method, self.layout, self.ema)
            rng.restore(held.tensors["rng"], self.seed, self.at.step)
            _log.info("going on from %s", found)
        if gather.is_main():
            self.metrics = Metrics(
                self.folder.root, int(state.get("metrics_bytes", 0)), self.at.step
            )
        self._clock = (time.monotonic(), self.at.step)

    def close(self) -> None:
        """Take the engine down; its method must not be used any more."""
        if self.metrics is not None:
            self.metrics.close()
        self.backend.close()
        del self.layout, self.passes, self.ema


def resolve_strategy(strategy: str) -> Strategy:
    """Return the strategy for the processes that there are.

    Raises:
        UserError: Several processes with strategy single.
    """
    several = gather.world().size > 1
    if strategy == "auto":
        return "ddp" if several else "single"
    if strategy == "single" and several:
        raise UserError(
            f"engine.strategy is single but {gather.world().size} processes were started: set it "
            "to auto, ddp or zero1 to zero3"
        )
    return strategy  # type: ignore[return-value]


def _piece(spec: StreamSpec, pieces: int) -> StreamSpec:
    """The stream that gives a step's batch in several micro-batches, the same samples in all."""
    if spec.batch % pieces:
        raise UserError(
            f"engine.accumulate={pieces} does not divide the batch {spec.batch} of stream "
            f"'{spec.name}': choose a divisor of data.batch"
        )
    return replace(spec, batch=spec.batch // pieces)


@contextlib.contextmanager
def _generator_untouched() -> Iterator[None]:
    """A loader that starts workers draws from torch's generator; a resumed run starts it at
    another step, so the draw must not count."""
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)
