"""What benchmarks measure of processes and machines, and how they start child processes and read their results.

Used by the benchmarks and by their child processes. Knows nothing about rounds.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from fednc.common.errors import RunFailedError

_ESTABLISHED = "01"  # state column of /proc/net/tcp


def tell(**values: Any) -> None:
    """Send one line of JSON to the process that started this one."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


class Child:
    """A new Python process, never forked (grpc does not survive that); killed if its block fails."""

    def __init__(self, module: str, argument: object) -> None:
        command = [sys.executable, "-m", module, json.dumps(argument)]
        self._module, self._process = module, subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def hear(self) -> dict[str, Any]:
        """The next message of the process. Raises RunFailedError if the process ends instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            killed = f"was killed by {signal.Signals(-code).name} (is memory short?)" if code < 0 else ""
            raise RunFailedError(f"{self._module} {killed or f'ended with code {code}'} without a result")
        told: dict[str, Any] = json.loads(line)
        return told

    def stop(self) -> None:
        """Ask a process that would go on for ever to end."""
        self._process.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error:
            self._process.kill()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.communicate()


def rss_mib() -> float:
    """Resident memory of this process now, in MiB."""
    return _status_mib("VmRSS")


def peak_rss_mib() -> float:
    """Peak resident memory of this process plus that of its largest ended child, in MiB."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return round(_status_mib("VmHWM") + children, 1)


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def connections(port: int) -> int:
    """Number of TCP connections to `port` of this machine."""
    rows = [row for table in ("tcp", "tcp6") for row in _table(table)]
    local = f":{port:04X}"
    return sum(row[1].endswith(local) and row[3] == _ESTABLISHED for row in rows)


def _table(name: str) -> list[list[str]]:
    path = Path("/proc/self/net", name)
    return [line.split() for line in path.read_text(encoding="ascii").splitlines()[1:]] if path.exists() else []


def raise_file_limit(wanted: int) -> int:
    """Let this process and its children open `wanted` files, or as many as allowed. Returns the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    granted = max(soft, wanted if unlimited else min(wanted, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    return granted


def machine() -> dict[str, Any]:
    """The hardware and software of this machine, to record with measurements."""
    import platform

    import grpc
    import numpy as np
    import torch

    from fednc.common.device import device_name

    gpus = [device_name(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
    return {
        **({"gpu": ", ".join(gpus)} if gpus else {}),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "grpc": grpc.__version__,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "")


def commit() -> str:
    """The commit of the source tree, with a `+` if files other than results differ from it.

    Outside a checkout it is the value of FEDNC_COMMIT (for a tree copied without its history), or empty.
    """
    here = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
    if found.returncode:
        return os.environ.get("FEDNC_COMMIT", "")
    wanted = ["git", "status", "--porcelain", "-uno", "--", ":(top)", ":(top,exclude)results"]
    changed = subprocess.run(wanted, cwd=here, capture_output=True, text=True)
    return found.stdout.strip() + ("+" if changed.stdout else "")
