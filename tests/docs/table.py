"""How each command of the documentation is run at the scale of a test.

A rule names how documented commands begin; the first that fits counts. What is changed, and what is
not run and why, stands here and nowhere else; a command without a rule fails the test.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

How = Literal["run", "shell", "inner", "text"]
SMALL = "--data.batch 16 --data.streams 4 --engine.threads 1 --engine.device cpu"
FEW = f"--engine.epochs 1 {SMALL}"
COX = f"--engine.epochs 2 --method.warmup_epochs 1 --method.label_fraction 0.5 {SMALL}"
SHORT = "--engine.max_steps 2"
LABELS = f"--method.label_fraction 0.5 {FEW}"


@dataclass(frozen=True)
class Rule:
    """What happens to commands that begin with `start`.

    Attributes:
        start: Regular expression of the beginning.
        how: run: outmodal's own, in this process, for real. shell: in a process, for real. inner:
            the outmodal command behind a launcher is run, the launcher is not. text: not run.
        also: Words that are put behind.
        swap: Word -> word, "" removes it.
        why: Why it is not run as it stands, for inner and text.
        slow: Left to the long tests.
    """

    start: str
    how: How = "run"
    also: str = ""
    swap: Mapping[str, str] = field(default_factory=dict)
    why: str = ""
    slow: bool = False


ONE = "--epochs 1 --steps 2 --prepare_epochs 1 --seeds 1"
PAIRS = {
    **{"fashion-speech": "pairs", "--seeds": "", "3": "", "8": "2", "six-view": "views"},
    **{"fashion-2000": "pairs", "engine.eval_every=0": "data.batch=16"},
    **{"optim.schedule=cosine": "data.batch=16", "text=MINILM_FOLDER": "text=BERT_FOLDER"},
}
CELLS = "--epochs 1 --steps 2 --probe.epochs 1 --objectives clip"
RULES = (
    # the whole flow, of which there are tests elsewhere
    Rule("make quickstart", "shell", "-n", why="tests/launch/test_quickstart.py runs the flow"),
    Rule("make test", "shell", "-n", why="would test the tests"),
    Rule("outmodal quickstart", "text", why="tests/launch/test_quickstart.py runs it"),
    Rule("pip install", "text", why="tests/launch/test_packaging.py installs the package"),
    # networks and clusters
    Rule("curl|hf download", "text", why="no test downloads weights"),
    Rule(r"srun -n 32 \.\.\.", "text", why="needs a cluster; tests/slurm has one"),
    Rule(
        "outmodal submit cox .* --data.path /shared",
        also="--dry-run",
        swap={"/shared/runs/cox": "submitted", "/shared/fashion": "features"},
    ),
    Rule(
        "outmodal submit synergy-",
        "inner",
        "--dry_run",
        swap={
            **{"submit": "train", "--nodes": "", "4": "", "--gpus-per-node": "", "8": ""},
            **{"--time": "", "24:00:00": ""},
        },
        why="a thousand rows of ImageNet; tests/launch/test_synergy_recipes.py trains the recipes",
    ),
    Rule("outmodal submit reproduce", also="--dry-run"),
    Rule("outmodal submit", also="--dry-run --data.path features"),
    Rule(
        "torchrun .* outmodal embed",
        "inner",
        "--perceptor image=weights/clip text=weights/clip --keep force",
        why="eight ranks; tests/models/test_embed.py starts two",
    ),
    Rule(
        "(torchrun|deepspeed|accelerate) .* outmodal train",
        "inner",
        "--dry_run",
        why="eight GPUs; tests/launch/test_launchers.py starts each launcher with two processes",
    ),
    Rule("outmodal train cox --nproc 8", also="--dry_run", swap={"--nproc": "", "8": ""}),
    Rule("outmodal train cox --nproc 2", also=f"{COX} --data.path features", slow=True),
    # data; addresses are those of a server of the test
    Rule("outmodal data stats https"),
    Rule("outmodal data check s3"),
    Rule("outmodal train (cox .*(https|s3):|mixed.yaml .*--out)", also=f"{COX} {SHORT}"),
    Rule("outmodal data index", swap={"FOLDER": "loose"}),
    Rule("outmodal data transcode", swap={"256": "16", "2": "0"}),
    Rule("outmodal data build folder", also="--workers 1"),
    Rule("outmodal data check", also="--workers 0"),
    Rule("outmodal data (stats|show)"),
    Rule("outmodal data build six-view", slow=True),
    Rule("outmodal data build imagenet"),
    Rule(
        "outmodal data build fashion-speech",
        swap={
            **{"60000": "60", "10000": "40", "2000": "20", "1000": "20"},
            **{"4000": "40", "500": "20"},
        },
        slow=True,
    ),
    # features
    Rule(r"outmodal embed .* imagebind", "text", why="the weights; tests/models/test_imagebind.py"),
    Rule("outmodal embed data", swap={"data": "pairs", "features": "made-features"}),
    Rule(
        "outmodal embed fashion-(speech|2000)",
        swap={"fashion-speech": "pairs", "fashion-2000": "pairs"},
    ),
    Rule("outmodal embed"),
    # training
    Rule("outmodal train .* --(help|dry_run)"),
    Rule("outmodal train force.yaml .*--method.name erm", also="--engine.threads 1"),
    Rule("outmodal train force.yaml", also="--method.vib_hidden 32 --engine.threads 1"),
    Rule("outmodal train quickstart-align", swap={"data": "pairs", "6": "1"}, also=SMALL),
    Rule("outmodal train align ", swap={"fashion-speech-sample": "pairs"}, also=FEW),
    Rule("outmodal train synergy-", also="--dry_run"),
    Rule("outmodal train fashion-synergy", swap={"fashion-speech": "pairs"}, also=FEW),
    Rule(
        "outmodal train fashion-mnist-synergy",
        swap={
            "fashion-mnist-synergy-$learner": "fashion-mnist-synergy-resnet",
            "fashion-mnist-synergy-$learner-level3": "fashion-mnist-synergy-vit-level3",
            "fashion-mnist": "pairs",
            "MINILM_FOLDER": "BERT_FOLDER",
            "$seed": "0",
            "$alpha": "0.3",
        },
        also=FEW,
        slow=True,
    ),
    Rule("outmodal train six-view-m", swap={"six-view": "views"}, also=FEW),
    Rule(
        r"outmodal train cox --method.name \$method",
        swap={"$method": "erm", "$seed": "0", "runs/$method-$seed": "runs/erm-0"},
        also=LABELS,
    ),
    Rule(
        "outmodal train cox-unsup --method.oom_init",
        "text",
        why="needs a tower of speech; tests/launch/test_cox_recipes.py has one",
    ),
    Rule(
        "outmodal (train cox-tower|export runs/tower)",
        "text",
        why="its known towers are another's; tests/launch/test_cox_recipes.py runs the flow",
    ),
    Rule("outmodal train cox", also=COX),
    Rule("outmodal train moco-cox", also=COX),
    Rule("outmodal train aligned", also=FEW),
    Rule("outmodal train (erm|entmin|random|ssl|moco|freematch|mixtext)", also=LABELS),
    # looking at runs
    Rule("outmodal eval runs/ova --task combinations", also="--probe.epochs 1"),
    Rule("outmodal eval runs/vit-b16", "text", why="tests/launch/eval/test_imagenet.py runs them"),
    Rule("outmodal eval"),
    Rule("outmodal export"),
    Rule("outmodal report"),
    Rule("outmodal reproduce cox-table4 .* --plan", swap=PAIRS),
    Rule("outmodal reproduce cox-table4", also=f"{ONE} --objectives cox", swap=PAIRS, slow=True),
    Rule("outmodal reproduce cox-", also=f"{ONE} --objectives erm", swap=PAIRS, slow=True),
    Rule("outmodal reproduce ume-", also=f"{ONE} --objectives ume-mma", swap=PAIRS, slow=True),
    Rule("outmodal reproduce inf", also=f"{ONE} --objectives infobridge", swap=PAIRS, slow=True),
    Rule(
        "outmodal reproduce syn", also=f"{ONE} --objectives synergy-alpha0", swap=PAIRS, slow=True
    ),
    Rule(
        "outmodal reproduce",
        also=CELLS,
        swap={
            "six-view": "views",
            "fashion-speech-sample": "views",
            "3": "1",
            "2": "1",
            "60": "1",
            "6": "1",
            "15": "1",
            "ova-ib-table$table": "ova-ib-table1",
        },
        slow=True,
    ),
    # planning and measuring
    Rule("outmodal plan RECIPE", swap={"RECIPE": "cox"}, also="--data.path features"),
    Rule("outmodal plan cox", also="--data.path features"),
    Rule("outmodal plan", slow=True),
    Rule("outmodal doctor --nproc", slow=True),
    Rule("outmodal doctor"),
    Rule("outmodal bench kernels", swap={"N": "128"}, also="--repeats 1", slow=True),
    Rule("outmodal bench perceptors --size full", "text", why="gigabytes; the next one is run"),
    Rule("outmodal bench perceptors", also="--repeats 1 --rounds 1 --compile False", slow=True),
    Rule("outmodal bench data", "text", why="minutes; tests/launch/bench/test_data_bench.py"),
    Rule("outmodal bench search", "text", why="minutes; tests/launch/bench/test_search.py"),
    Rule("outmodal bench train", "text", why="minutes; tests/launch/test_bench_train.py"),
    Rule("for |done", "text", why="the loop around commands that are run once"),
)


def rule_of(command: str) -> Rule | None:
    """The first rule that fits."""
    return next((rule for rule in RULES if re.match(rule.start, command)), None)


def words(command: str, rule: Rule) -> list[str]:
    """The words to run: without ellipses and optional parts, swapped, with more behind."""
    plain = re.sub(r"\[[^\]]*\]", "", command)
    found = [rule.swap.get(w, w) for w in shlex.split(plain) if w != "..."]
    return [w for w in found if w] + shlex.split(rule.also)
