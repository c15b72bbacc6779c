"""Why an engine process died: by itself, or by somebody's hand."""

import signal
from pathlib import Path

FROM_WITHIN = frozenset(
    -number
    for number in (
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSYS,
        signal.SIGTRAP,
    )
)
CGROUPS = Path("/sys/fs/cgroup")


def by_itself(status: int | None, *, hung: bool, out_of_memory: bool) -> bool:
    """An exit with an error, a signal that its own instructions raise, a hung step, the kernel's choice for want of
    memory. A SIGKILL or SIGTERM without that is somebody's.
    """
    if status is None:
        return False
    return hung or status > 0 or status in FROM_WITHIN or (status == -signal.SIGKILL and out_of_memory)


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory, in this control group or on this host; 0 if it
    does not say.
    """
    for path, name in ((_own_group() / "memory.events", "oom_kill"), (Path("/proc/vmstat"), "oom_kill")):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, count = line.partition(" ")
            if key == name:
                return int(count)
    return 0


def stopped(pid: int) -> bool:
    """Whether a process has been stopped (SIGSTOP): it does not hang."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def _own_group() -> Path:
    try:
        name = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
    except OSError:
        name = ""
    return CGROUPS / name.lstrip("/")
