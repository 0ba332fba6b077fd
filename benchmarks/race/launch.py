"""Starts a command, waits, and writes what it took: `python -I -S launch.py REPORT COMMAND ...`.

The kernel counts a process's largest memory from before it became the program that it is, when it was still a copy of
whoever started it. Who starts it must be small, then, and a benchmark that has trained a network is not.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_PATIENCE_SECONDS = 3600


def main() -> None:
    """Writes the report once the command has ended; one that hangs is ended."""
    report, *command = sys.argv[1:]
    begun, clock = time.time(), time.perf_counter()
    process = subprocess.Popen(command)  # noqa: S603 - our own commands
    signal.signal(signal.SIGALRM, lambda *_: process.kill())
    signal.alarm(_PATIENCE_SECONDS)
    _, status, usage = os.wait4(process.pid, 0)
    facts = {
        "begun": begun,
        "seconds": time.perf_counter() - clock,
        "user": usage.ru_utime,
        "system": usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "minor_faults": usage.ru_minflt,
        "code": os.waitstatus_to_exitcode(status),
    }
    Path(report).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
