"""Memory that stays: in a process of its own, since it stays for good."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import ctypes, resource, threading
import torch
from outmodal.launch.bench.allocator import keep_memory

kept = keep_memory()

def faults():
    def step():  # blocks of many sizes, all given back at the end
        held = [torch.ones(n * 50_000) for n in range(1, 40)]
        del held
    step()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(5):
        step()
    found.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

found = []
torch.set_num_threads(1)
for _ in range(2):
    thread = threading.Thread(target=faults)
    thread.start()
    thread.join()
print(kept, *found)

# more than 2 GiB at the top of the heap, of which nothing is touched
heap = ctypes.CDLL(None).sbrk
heap.restype = ctypes.c_void_p
big = torch.empty(700_000_000)
end = heap(0)
del big
print(heap(0) - end)
"""


def test_freed_memory_is_used_again_without_page_faults() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=300
    )
    kept, *faults, trimmed = done.stdout.split()
    assert kept == "True"
    assert trimmed == "0"
    # 156 MB are 38,000 pages, which would fault in each of five steps
    assert all(int(n) < 19_000 for n in faults), faults
