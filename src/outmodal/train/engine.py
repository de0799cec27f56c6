"""The one training loop, for all methods and all ways to run them.

    for each epoch: method.on_epoch_start -> steps -> evaluation now and then
    each step:      micro-batches -> forward and backward -> guard, clip, optimizer -> EMA -> log

The method decides what is trained; the backend, on how many processes; the feed, from what; the
saver, how it survives. Everything that a resumed run needs is in `Position`, the checkpoint's
tensors and the feed's pure functions, so that it continues bit for bit.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import Tensor
from torch.nn import Module

from outmodal.data.batch import Batch, StreamSpec
from outmodal.errors import StoppedEarly, UserError
from outmodal.train import gather, rng
from outmodal.train.backend import make_backend
from outmodal.train.ema import Ema
from outmodal.train.engine_config import EngineConfig, resolve_strategy
from outmodal.train.feed import Feed, Steps
from outmodal.train.folderlock import writing
from outmodal.train.methods.base import Method, Stage, scheduled
from outmodal.train.microbatch import MicroBatches, check_micro_batch
from outmodal.train.optim import OptimConfig, mark_idle
from outmodal.train.passes import EnginePasses
from outmodal.train.progress import Progress
from outmodal.train.recorder import Recorder
from outmodal.train.runfolder import RunFolder
from outmodal.train.saving import Saver
from outmodal.train.signals import StopRequest
from outmodal.train.together import on_main
from outmodal.train.watchdog import Watchdog

__all__ = ["Engine", "EngineConfig", "Feed", "Position", "resolve_strategy"]

_log = logging.getLogger(__name__)


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


Counted = Callable[[Sequence[StreamSpec], int, int], Mapping[str, float]]
"""(streams, epoch, steps) -> what to record at the end of an epoch that had so many steps."""


class Engine:
    """Trains one method in one run folder.

    Args:
        method: What to train; built alike on all ranks.
        feed: Where batches come from.
        optim: Optimizer and schedule.
        config: The engine's section.
        folder: The run's folder, held.
        seed: The run's seed.
        stop: Being asked to stop; None listens for the length of `fit`.
        shown: Show progress.

    Attributes:
        counted: Numbers to record at the end of each epoch; nothing unless it is set.
    """

    def __init__(
        self,
        method: Method,
        feed: Feed,
        optim: OptimConfig,
        config: EngineConfig,
        folder: RunFolder,
        seed: int,
        stop: StopRequest | None = None,
        shown: bool = True,
    ) -> None:
        self.method, self.feed, self.optim, self.config = method, feed, optim, config
        self.folder, self.seed, self.stop = folder, seed, stop or StopRequest()
        self.at = Position()
        self.epoch_steps = method.steps_per_epoch()
        self.total = self._total_steps()
        rng.seed_everything(seed, 0, gather.world().rank)
        optimizer = optim.build(method.param_groups())
        strategy = resolve_strategy(config.strategy)
        check_micro_batch(method, config)
        self.backend = make_backend(
            method, optimizer, strategy, config.precision, config.clip, config.compile
        )
        self.layout = self.backend.layout
        self.pieces = MicroBatches(self.backend, config.micro_batch) if config.micro_batch else None
        self.passes = EnginePasses(self.backend, self._full_pass)
        self.ema = Ema(self.layout, config.ema) if config.ema else None
        self.watchdog = Watchdog(folder.root, config.hang_minutes)
        self.saver = Saver(method, self.layout, self.ema, config, folder, self.watchdog)
        self.recorder = Recorder(config.log_every, self.total)
        self.counted: Counted = lambda specs, epoch, steps: {}
        self._steps = Steps(feed, config.accumulate)
        self._modules: list[Module] = []
        self._shown = shown and gather.is_main()

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
        progress = Progress(self.total, self.at.step, self._shown)
        with self.stop, self.watchdog, progress:
            for epoch in range(self.at.epoch, self.config.epochs):
                self._train_epoch(epoch, progress)
                if self._done():
                    break
                if self.config.eval_every and (epoch + 1) % self.config.eval_every == 0:
                    self._evaluate(epoch)
                self.at = replace(self.at, epoch=epoch + 1, epoch_step=0, started=False)
            self._save()
            result = self._evaluate(self.at.epoch)
            self._settle()
        self.folder.finish(self.at.step, result)
        return result

    def _train_epoch(self, epoch: int, progress: Progress) -> None:
        stage = self._stage(epoch).name
        if not self.at.started:
            self._leave_if(gather.agree(self.stop.asked))
            logs = self.method.on_epoch_start(epoch, stage, self.passes)
            self.recorder.write(self.at.step, epoch, stage, "epoch", logs)
            self.at = replace(self.at, started=True)
        # once an epoch, as methods that change parts do so at its start: too slow for each step
        self._modules = list(self.backend.router.modules())
        for micro in self._batches(epoch, stage):
            values, leave = self._step(micro, stage)
            self.watchdog.beat(f"step {self.at.step}")
            label = f"epoch {epoch + 1}/{self.config.epochs} {stage}"
            progress.advance(label, values, self._steps.waiting)
            if values:
                self._record(epoch, stage, values)
            if self.at.step % self.config.checkpoint_every == 0 and not self._done():
                self._save()
            self._leave_if(leave and not self._done())
        counts = self.counted(self.method.streams(stage), epoch, self.at.epoch_step)
        self.recorder.write(self.at.step, epoch, stage, "data", counts)

    def _step(
        self, micro: Sequence[Mapping[str, Batch]], stage: str
    ) -> tuple[dict[str, float], bool]:
        """One optimizer step; returns what to log (nothing on most steps) and whether to stop."""
        lr = self._set_lr()
        if not all(module.training for module in self._modules):
            self.backend.router.train()  # only then: to set it everywhere takes longer than to look
        self.backend.start_step()
        losses: list[Tensor] = []
        logs: list[Mapping[str, Tensor]] = []
        for i, batches in enumerate(micro):
            last = i + 1 == len(micro)
            number = self.at.step * len(micro) + i
            if self.pieces is not None:
                loss, shown = self.pieces.gradient(batches, stage, number)
            else:
                loss, shown = self.backend.train_loss(batches, stage, number, last=last)
                self.backend.backward(loss / len(micro), last)
            losses.append(loss.detach())
            logs.append(shown)
        asked, failed, *reached = gather.max_over_ranks(
            [int(self.stop.asked), int(self._cannot_write()), *self.backend.reached.groups()]
        )
        if failed:
            on_main(self._check_writing)
        mark_idle(self.layout.optimizer, reached)
        self.backend.edit(stage, self.at.step)
        taken = self.backend.step()
        self.backend.sync_buffers()
        if taken and self.ema is not None:
            self.ema.update()
        self.at = replace(self.at, step=self.at.step + 1, epoch_step=self.at.epoch_step + 1)
        if not taken:
            self._count_nonfinite()
        more = {"grad_norm": self.backend.last_norm, "lr": lr}
        return self.recorder.values(self.at.step, losses, logs, more), bool(asked)

    def _batches(self, epoch: int, stage: str) -> Iterator[list[dict[str, Batch]]]:
        """The micro-batches of each step that is left of an epoch, on the device."""
        left = self.epoch_steps
        if self.config.max_steps:
            left = min(left, self.config.max_steps - self.at.step + self.at.epoch_step)
        device = gather.world().device
        streams = self.method.streams(stage)
        for micro in self._steps.of(streams, epoch, self.at.epoch_step, left):
            if self.at.step == 0:
                self.recorder.show_inputs(micro[0])
            if self.pieces is not None:
                yield micro  # each piece moves when its turn comes
            else:
                yield [{name: b.to(device) for name, b in piece.items()} for piece in micro]

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

    def _set_lr(self) -> float:
        """Set the next step's learning rate; return its base."""
        begin, end = scheduled(self.method.stages(), self.at.epoch)
        first, last = begin * self.epoch_steps, min(self.total, end * self.epoch_steps)
        scale = self._stage(self.at.epoch).lr_scale
        step, optimizer = self.at.step - first, self.layout.optimizer
        return self.optim.set_lr(optimizer, step, last - first, self.epoch_steps, scale)

    def _done(self) -> bool:
        """No step is left (a method without steps still has its epochs)."""
        return self.at.step >= self.total and self.total > 0

    def _count_nonfinite(self) -> None:
        self.at = replace(self.at, skipped=self.at.skipped + 1)
        cause = self.method.suspects()
        why = f": {cause}" if cause else ""
        _log.warning("step %d: the gradient is not finite%s; passed over", self.at.step, why)
        if self.at.skipped > self.config.nonfinite_budget:
            raise UserError(
                f"the gradient was not finite at step {self.at.step}, the "
                f"{self.at.skipped}. time, and engine.nonfinite_budget is "
                f"{self.config.nonfinite_budget}{why}: start a new run with a lower optim.lr or a "
                "longer optim.warmup_epochs, or look for bad values with `outmodal data check`"
            )

    def _record(self, epoch: int, stage: str, values: Mapping[str, float]) -> None:
        self.recorder.write(self.at.step, epoch, stage, "train", values)
        self.recorder.speed(self.at.step, self._steps.waited)
        self.recorder.checkpoints(self.saver.written())
        self._steps.waited = 0.0

    def _evaluate(self, epoch: int) -> dict[str, float]:
        epoch = min(epoch, self.config.epochs - 1)
        with self.ema.swapped() if self.ema else contextlib.nullcontext():
            found = self.method.diagnose(self.passes)
            values = self.method.evaluate(self.passes)
        stage = self._stage(epoch).name
        self.recorder.write(self.at.step, epoch, stage, "diagnostics", found)
        self.recorder.write(self.at.step, epoch, stage, "eval", values)
        return values

    def _full_pass(self, spec: StreamSpec) -> Iterator[Batch]:
        for number, batch in enumerate(self.feed.full_pass(spec)):
            self.watchdog.beat(f"batch {number} of a pass over '{spec.name}'")
            yield batch

    # --- checkpoints -------------------------------------------------------------------------

    def _save(self) -> None:
        """Begin to write a checkpoint of this step, unless there is one."""
        self.saver.save(self.at.step, self._state)

    def _state(self) -> dict[str, Any]:
        return asdict(self.at) | {
            "stage": self._stage(min(self.at.epoch, self.config.epochs - 1)).name,
            "feed": self.feed.state(),
            "metrics_bytes": self.recorder.offset(),
        }

    def _settle(self) -> None:
        """Wait until everything is on the disk."""
        self.saver.wait()
        self.recorder.checkpoints(self.saver.written())
        on_main(self._check_writing)

    def _cannot_write(self) -> bool:
        return self.recorder.failed or self.saver.failed

    def _check_writing(self) -> None:
        self.recorder.check()
        self.saver.check()

    def _leave_if(self, asked: bool) -> None:
        if not asked:
            return
        self._save()
        self._settle()
        stopped = StoppedEarly(
            f"stopped on request after step {self.at.step} of {self.total}; checkpoint "
            f"{self.folder.checkpoints / f'step-{self.at.step:08d}'} is complete. Run the "
            "same command again to go on"
        )
        stopped.quiet = not gather.is_main()
        raise stopped

    def _resume(self) -> None:
        state = self.saver.restore(self.seed) or {}
        if state:
            self.at = Position(**{f.name: state[f.name] for f in fields(Position)})
            _log.info("going on from %s", state["path"])
        offset = int(state.get("metrics_bytes", 0))

        def open_records() -> None:
            with writing(self.folder.root):
                self.recorder.open(self.folder.root, offset, self.at.step)

        on_main(open_records)

    def close(self) -> None:
        """Take the engine down; its method must not be used any more."""
        self.saver.close()
        self.recorder.close()
        self.backend.close()
        del self.layout, self.passes, self.ema, self.saver, self._modules
