"""The whole estimate of one run on one machine: every strategy, the chosen one in full, advice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from outmodal.data.epoch import EpochUse
from outmodal.errors import UserError
from outmodal.launch.plan.advice import Option, first_that_fits
from outmodal.launch.plan.costs import Costs
from outmodal.launch.plan.hardware import Machine
from outmodal.launch.plan.loading import Loading, demands
from outmodal.launch.plan.memory import STRATEGIES, Holding, Memory, estimate
from outmodal.launch.plan.subject import Subject
from outmodal.launch.plan.timing import Step, Survival, step_time, survival
from outmodal.launch.plan.wire import Wire, traffic
from outmodal.train.backend import Strategy
from outmodal.train.methods.base import WholeBatchMethod

_MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1}


@dataclass(frozen=True)
class Assumptions:
    """What cannot be known from the recipe.

    Attributes:
        failure_hours: GPU hours for each failure of a job.
        write_rate: Bytes a second to the run's folder.
        core_rate: Samples a second of one decoding core.
        core_rate_measured: Whether that was timed here.
    """

    failure_hours: float
    write_rate: float
    core_rate: float
    core_rate_measured: bool


@dataclass(frozen=True)
class Estimate:
    """A run on a machine.

    Attributes:
        machine: Where.
        rows: Rows of one pass on one GPU.
        passes: Passes in a step.
        batch: Global batch.
        parameters: Trainable parameters.
        options: Memory of every strategy, with and without computing activations again.
        chosen: The recipe's own.
        fits: Whether that fits.
        proposal: The least change that fits; None where nothing is to change or nothing helps.
        step, wire, loading, survival: Of the chosen one.
        steps: Optimizer steps of the run.
        use: Samples that an epoch has, uses and drops.
    """

    machine: Machine
    rows: int
    passes: int
    batch: int
    parameters: int
    options: Sequence[Memory]
    chosen: Memory
    fits: bool
    proposal: Option | None
    step: Step
    wire: Wire
    loading: Loading
    survival: Survival
    steps: int
    use: EpochUse
    flops: float

    @property
    def samples_per_second(self) -> float:
        """Samples of all GPUs together."""
        return self.batch / self.step.seconds

    @property
    def hours(self) -> float:
        """The whole run, with what failures cost."""
        return self.steps * self.step.seconds / 3600 / max(1e-9, 1 - self.survival.overhead)

    @property
    def utilisation(self) -> float:
        """Arithmetic of a step against the GPUs' bf16 rate (model flops utilisation)."""
        return self.flops * self.passes / self.step.seconds / self.machine.gpu.bf16


class Planner:
    """Estimates of one recipe on any machine.

    Args:
        subject: The recipe's method.
        checkpointed: The same with activations computed again; None where it cannot.
    """

    def __init__(self, subject: Subject, checkpointed: Subject | None) -> None:
        self.subject, self.checkpointed = subject, checkpointed
        self._counted: dict[tuple[int, bool], Costs] = {}

    def costs(self, rows: int, again: bool) -> Costs:
        """Costs of a pass of `rows` rows; `again`: with activations computed again."""
        if (rows, again) not in self._counted:
            subject = self.checkpointed if again and self.checkpointed else self.subject
            self._counted[rows, again] = subject.step_costs(rows)
        return self._counted[rows, again]

    def holding(self, rows: int, machine: Machine) -> Holding:
        """What the run holds on one GPU."""
        config = self.subject.config
        return Holding(
            self.subject.parameters,
            _MOMENTS[config.optim.name] if not _plain_sgd(config.optim) else 0,
            config.engine.ema > 0,
            self.subject.frozen_bytes(),
            self.subject.input_bytes(rows),
            config.engine.precision,
            "cpu" if machine.gpu.name == "cpu" else "cuda",
        )

    def memory(self, machine: Machine, rows: int, strategy: Strategy, again: bool) -> Memory:
        """Bytes on one GPU for `rows` rows in a pass."""
        held = self.holding(rows, machine)
        return estimate(held, self.costs(rows, again), strategy, machine.size, again)

    def estimate(self, machine: Machine, known: Assumptions) -> Estimate:
        """Everything about the recipe on a machine.

        Raises:
            UserError: The GPUs do not share the batch equally.
        """
        config = self.subject.config
        rows, passes = split_batch(config.data.batch, machine.size, config.engine.accumulate)
        micro = config.engine.micro_batch
        if micro and micro < rows:
            rows, passes = micro, passes * math.ceil(rows / micro)
        strategy = chosen_strategy(config.engine.strategy, machine.size)
        again = config.engine.activation_checkpointing and self.checkpointed is not None
        kinds = [False, True] if self.checkpointed is not None else [False]
        options = [
            self.memory(machine, rows, s, k)
            for s in STRATEGIES
            for k in kinds
            if (s == "single") == (machine.size == 1) or s == strategy
        ]
        chosen = self.memory(machine, rows, strategy, again)
        fits = chosen.total <= machine.usable
        proposal = None if fits else first_that_fits(self, machine, rows, passes, strategy)
        return self._timed(
            Estimate(
                machine,
                rows,
                passes,
                config.data.batch,
                self.subject.parameters,
                options,
                chosen,
                fits,
                proposal,
                *self._rates(machine, rows, passes, chosen, known),
                self.steps(),
                self.subject.facts.use,
                float(self.costs(rows, again).flops.sum()),
            ),
            known,
        )

    def smaller_passes(self, rows: int, passes: int, pieces: int) -> str:
        """The option that cuts a pass into `pieces`: exact micro-batches where the objective
        needs the whole batch, else accumulation."""
        if isinstance(self.subject.method, WholeBatchMethod):
            return f"--engine.micro_batch {rows // pieces}"
        return f"--engine.accumulate {passes * pieces}"

    def steps(self) -> int:
        """Optimizer steps of the run."""
        engine = self.subject.config.engine
        total = self.subject.facts.steps_per_epoch * engine.epochs
        return min(total, engine.max_steps) if engine.max_steps else total

    def _rates(
        self, machine: Machine, rows: int, passes: int, chosen: Memory, known: Assumptions
    ) -> tuple[Step, Wire, Loading, Survival]:
        low = self.subject.config.engine.precision == "bf16"
        encoded = self.subject.encoded_bytes(rows) * passes
        p = self.subject.parameters
        wire = traffic(p, chosen.strategy, machine.size, low, encoded, passes)
        state = chosen.parts["weights"] + chosen.parts["gradients"] + chosen.parts["optimizer"]
        costs = self.costs(rows, chosen.checkpointed)
        step = step_time(costs, passes, wire, machine, low, state)
        rate = self.subject.config.data.batch / step.seconds
        loading = demands(
            known.core_rate,
            known.core_rate_measured,
            rate,
            machine.nodes,
            self.subject.facts.sample_bytes,
        )
        held = self.holding(rows, machine)
        size = 4.0 * p * (1 + held.moments + held.averaged)
        sharded = machine.size if chosen.strategy.startswith("zero") else 1
        lost = survival(size, machine, known.failure_hours, known.write_rate, sharded)
        return step, wire, loading, lost

    def _timed(self, found: Estimate, known: Assumptions) -> Estimate:
        """The estimate; a job shorter than a checkpoint interval writes one at its end only."""
        seconds = found.steps * found.step.seconds
        if seconds >= found.survival.interval:
            return found
        once = min(1.0, found.survival.stall / max(seconds, 1e-9))
        return replace(found, survival=replace(found.survival, overhead=once))


def split_batch(batch: int, ranks: int, accumulate: int) -> tuple[int, int]:
    """Rows of a pass on one GPU, and passes in a step.

    Raises:
        UserError: They do not divide; names the nearest batch that works.
    """
    whole = ranks * accumulate
    if batch % whole:
        near = max(whole, round(batch / whole) * whole)
        raise UserError(
            f"data.batch={batch} is not shared equally by {ranks} GPUs with engine.accumulate="
            f"{accumulate}: the nearest that is, is {near}"
        )
    return batch // whole, accumulate


def chosen_strategy(strategy: str, ranks: int) -> Strategy:
    """The recipe's strategy for so many GPUs, without looking at this process's world."""
    if strategy == "auto" or (strategy == "single" and ranks > 1):
        return "ddp" if ranks > 1 else "single"
    return strategy  # type: ignore[return-value]


def _plain_sgd(optim: object) -> bool:
    return getattr(optim, "name", "") == "sgd" and getattr(optim, "momentum", 0) == 0


def interval_steps(found: Estimate) -> int:
    """Steps between checkpoints that lose least."""
    return max(1, math.floor(found.survival.interval / found.step.seconds))
