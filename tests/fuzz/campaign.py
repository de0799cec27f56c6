"""Fuzz for longer: python -m tests.fuzz.campaign --targets png,tar --seconds 120 --out FINDINGS

Inputs are a function of (target, number), so a run goes on where `--start` says.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import Counter

from tests.fuzz.containers import container_seeds
from tests.fuzz.guard import Finding, Guard
from tests.fuzz.mutate import mutated
from tests.fuzz.seeds import NAMES, seed
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run, and print one line a target; exit 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    if options.out:
        os.environ["FUZZ_FINDINGS"] = options.out
    found = 0
    with Guard() as guard:
        for target in options.targets.split(","):
            found += _fuzz(guard, target, options.seconds, options.start)
    return 1 if found else 0


def _fuzz(guard: Guard, target: str, seconds: float, start: int) -> int:
    files = [seed(target)] if target in NAMES else container_seeds(target)
    others = [seed(name) for name in NAMES] if target in NAMES else files
    outcomes: Counter[str] = Counter()
    number, end = start, time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(files[number % len(files)], random.Random(number), others)
        try:
            outcomes[guard.run(target, data)["outcome"]] += 1
        except Finding as finding:
            outcomes["found"] += 1
            sys.stdout.write(f"{finding}\n")
        number += 1
    sys.stdout.write(f"{target}: inputs {start}..{number}: {dict(outcomes)}\n")
    sys.stdout.flush()
    return outcomes["found"]


if __name__ == "__main__":
    raise SystemExit(main())
