"""The service's threads do not each keep the memory that they once needed."""

import platform
import subprocess
import sys

import pytest

STORY = """
import ctypes, sys, threading
from lossguard_service.memory import share_arenas

assert share_arenas()
together = threading.Barrier(8)

def work() -> None:
    together.wait()
    held = [bytes(100_000) for _ in range(20)]
    together.wait()

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library = ctypes.CDLL(None)
library.malloc_info(0, ctypes.c_void_p.in_dll(library, "stdout"))
library.fflush(None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
def test_threads_share_two_arenas() -> None:
    done = subprocess.run([sys.executable, "-c", STORY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<heap nr=") == 2
