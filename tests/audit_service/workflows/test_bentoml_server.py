"""Stopping a server ends all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from audit_service.workflows.processes.bentoml_server import stop

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) < 2:
    subprocess.Popen([sys.executable, __file__, "worker"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


def test_no_worker_outlives_a_supervisor_that_had_to_be_killed(tmp_path: Path) -> None:
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN, encoding="utf-8")
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
    (worker,) = psutil.Process(process.pid).children()

    stop(process, seconds=0.2)

    assert process.returncode is not None
    assert psutil.wait_procs([worker], timeout=60)[1] == []
