"""Two processes on this machine: by a launcher, or started one by one where a test has to end one of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from warm import ENVIRONMENT as THREADS
from warm import Started

BIN = Path(sys.executable).parent


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def launch(how: str, *words: str | Path, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    """Two processes by `torchrun`, or by `accelerate launch`, which is asked to shard."""
    if how == "torchrun":
        line = [BIN / "torchrun", "--nproc-per-node", "2", "--master-port", str(port())]
    else:
        line = [
            BIN / "accelerate", "launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2",
            "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
            "--main_process_port", str(port()),
        ]  # fmt: skip
    environment = {**os.environ, **THREADS}
    return subprocess.run(
        [*map(str, line), *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=timeout,
    )


def pair(*words: str | Path, script: Path | None = None) -> list[Started]:
    """The same of the command, or of a script, without a launcher that ends one when the other dies."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = ({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))
    return [Started(*words, script=script, environment=rank) for rank in ranks]


def ended(processes: list[Started], timeout: int = 120) -> list[tuple[int, str]]:
    """Exit code and what was said, of each."""
    try:
        said = [process.communicate(timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
    return [(process.wait(timeout), words) for process, words in zip(processes, said, strict=True)]
