"""The router's process: `python -m hekaton_router`."""

from hekaton.config import RouterSettings
from hekaton.rpc.server import run
from hekaton_router.service import main

if __name__ == "__main__":
    run(RouterSettings, main)
