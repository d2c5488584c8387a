"""Run a piece of code in a process of its own, to see how much memory it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The peak since this program began: `ru_maxrss` would include that of the process that started it.
_RUN = """
import sys
try:
    exec(sys.argv[1])
except ValueError as error:
    print(type(error).__name__, str(error).encode("ascii", "backslashreplace").decode())
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_memory(code: str, *arguments: str, timeout: float = 60) -> tuple[str, int]:
    """Run Python code, which finds the arguments in ``sys.argv[2:]``.

    Returns:
        What it printed; if it ended in a ValueError, the name and message of that last. And its peak memory in bytes.
    """
    done = subprocess.run(
        [sys.executable, "-c", _RUN, code, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=timeout,
    )
    *printed, peak = done.stdout.splitlines()
    return "\n".join(printed), int(peak) * 1024
