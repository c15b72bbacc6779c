"""The scheduler's process: `python -m hekaton_scheduler`."""

from hekaton.config import SchedulerSettings
from hekaton.rpc.server import run
from hekaton_scheduler.service import main

if __name__ == "__main__":
    run(SchedulerSettings, main)
