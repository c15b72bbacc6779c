"""Runs a command that ends when its parent does: `python leash.py PARENT_PID COMMAND…`.

A program of its own, because the kernel is asked between fork and exec, and the supervisor has gRPC threads that a
plain fork would harm.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # The parent may have gone before the kernel was asked.
    if os.getppid() == int(parent):
        os.execv(command[0], command)


if __name__ == "__main__":
    main()
