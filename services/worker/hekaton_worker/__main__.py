"""The worker's process: `python -m hekaton_worker`."""

from hekaton.config import WorkerSettings
from hekaton.rpc.server import run
from hekaton_worker.worker import main

if __name__ == "__main__":
    run(WorkerSettings, main)
