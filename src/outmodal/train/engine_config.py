"""The `engine:` section of a run's configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from outmodal.base import Config
from outmodal.errors import UserError
from outmodal.train import gather
from outmodal.train.backend import Strategy
from outmodal.train.deepspeed_setup import Precision


class EngineConfig(Config):
    """Length, precision, processes and records of a run.

    Attributes:
        epochs: Epochs over all stages.
        max_steps: Stop after this many optimizer steps; 0 is no limit.
        strategy: auto (one process, or ddp for several), single, ddp, or DeepSpeed's ZeRO stage.
        precision: fp32, or bf16 (autocast; under ZeRO also bf16 weights with fp32 masters).
        accumulate: Micro-batches per optimizer step; the batch stays data.batch.
        micro_batch: Rows per process of one forward pass, for methods whose objective compares the
            whole batch (align): memory of a piece, the gradient of the whole, about a third more
            arithmetic. 0 takes all rows at once.
        clip: Largest norm of the gradient; 0 does not clip.
        ema: Decay of an average of the weights, which evaluation and export use; 0 is none.
        compile: Run the method through torch.compile.
        activation_checkpointing: Keep only the inputs of the learners' blocks for the backward,
            and compute the rest again: less memory for about a third more arithmetic.
        log_every: Steps between lines in metrics.jsonl.
        checkpoint_every: Steps between checkpoints; the last step always has one.
        async_checkpoint: Write checkpoints beside the training: a step waits for the copy to the
            CPU only, and for the checkpoint before where that is still being written.
        keep: Newest checkpoints to keep.
        keep_every: Checkpoints to keep for ever: those at multiples of so many steps; 0 is none.
        eval_every: Epochs between evaluations; 0 evaluates only at the end.
        nonfinite_budget: Steps with a gradient that is not finite to pass over in a run.
        device: auto, cpu or cuda.
        timeout: Minutes that a collective waits for another process.
        hang_minutes: Minutes without a step, a batch of an evaluation or a part of a checkpoint
            after which a process shows what all processes do (RUN/hang-*.txt) and all end; 0
            waits for ever. A little below `timeout`, so that it comes first; more where the start
            of an epoch computes for longer.
        threads: CPU threads of each process; 0 shares the cores out.
    """

    epochs: int = Field(default=10, ge=1)
    max_steps: int = Field(default=0, ge=0)
    strategy: Literal["auto", "single", "ddp", "zero0", "zero1", "zero2", "zero3"] = "auto"
    precision: Precision = "fp32"
    accumulate: int = Field(default=1, ge=1)
    micro_batch: int = Field(default=0, ge=0)
    clip: float = Field(default=1.0, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    compile: bool = False
    activation_checkpointing: bool = False
    log_every: int = Field(default=10, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    async_checkpoint: bool = True
    keep: int = Field(default=2, ge=1)
    keep_every: int = Field(default=0, ge=0)
    eval_every: int = Field(default=0, ge=0)
    nonfinite_budget: int = Field(default=3, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    timeout: float = Field(default=10.0, gt=0)
    hang_minutes: float = Field(default=9.0, ge=0)
    threads: int = Field(default=0, ge=0)


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
