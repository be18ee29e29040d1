"""What holds for every test: no usage reports, servers last, interrupts, and no skips where they are forbidden."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Generator

import hypothesis
import pytest

# How long an example takes says nothing of the code on a machine that does something else meanwhile.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

os.environ["BENTOML_DO_NOT_TRACK"] = "True"
# BentoML reads it when it is imported; nothing that tests make may land in the store of whoever runs them.
os.environ["BENTOML_HOME"] = tempfile.mkdtemp(prefix="bentoml-")
atexit.register(shutil.rmtree, os.environ["BENTOML_HOME"], ignore_errors=True)

# A shell has what it runs in the background ignore interrupts; what tests start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

FORBID_SKIPS = os.environ.get("BENTO_AUDIT_FORBID_SKIPS", "") not in ("", "0")

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    # Processes that share the processor wait for each other where each of them takes all of it.
    os.environ["OMP_NUM_THREADS"] = str(max(1, min(2, (os.cpu_count() or 1) // WORKERS)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: what drives a real server comes after all the others, and ``-m service`` chooses it."""
    for item in items:
        if "tests/service/" in item.nodeid:
            item.add_marker(pytest.mark.service)
    items.sort(key=lambda item: item.get_closest_marker("service") is not None)


def pytest_collection_finish() -> None:
    """What imports have made stays, so garbage collections, of which every build does one, need not go through it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With BENTO_AUDIT_FORBID_SKIPS=1 a skipped test is a failed one."""
    report = yield
    if FORBID_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and BENTO_AUDIT_FORBID_SKIPS is set: {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module that skips itself."""
    report = yield
    if FORBID_SKIPS and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, and BENTO_AUDIT_FORBID_SKIPS is set: {_reason(report.longrepr)}"
    return report


def _reason(longrepr: object) -> object:
    return longrepr[2] if isinstance(longrepr, tuple) else longrepr
