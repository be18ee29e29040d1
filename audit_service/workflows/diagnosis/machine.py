"""Checks the machine: Python, packages and their bytecode, torch, memory, port, usage reports."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from packaging.requirements import Requirement

from audit_service.workflows.diagnosis.finding import Finding
from influence_engine.resources import free_memory, readable_bytes

DISTRIBUTION = "bento-audit"
OLDEST, NEWEST = (3, 11), (3, 13)
MEMORY_WANTED = 3_000_000_000
"""Bytes that serving the demo's model with its engine takes, with a margin."""
PORT = 3000


def look_at_machine(do_not_track: str | None) -> Iterator[Finding]:
    """All findings about the machine.

    Args:
        do_not_track: What ``BENTOML_DO_NOT_TRACK`` was before this program set it.
    """
    yield python_version()
    yield from packages()
    yield bytecode()
    yield torch_build()
    yield memory()
    yield port()
    yield usage_reports(do_not_track)
    yield build_tool()


def python_version() -> Finding:
    """Checks whether this Python is one that is supported."""
    found = f"{platform.python_version()} at {sys.executable}"
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return Finding("python", "ok", found)
    advice = f"use Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    return Finding("python", "broken", found, advice)


def packages(distribution: str = DISTRIBUTION) -> Iterator[Finding]:
    """One finding for all required packages that fit, and one for each that does not."""
    fitting = 0
    for line in importlib.metadata.requires(distribution) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        advice = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(f"package {requirement.name}", "broken", "not installed", advice)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            fitting += 1
        else:
            found = f"{version}, needed is {requirement.specifier}"
            yield Finding(f"package {requirement.name}", "broken", found, advice)
    yield Finding("packages", "ok", f"{fitting} of the required packages are there in a version that fits")


def bytecode(package: ModuleType = torch) -> Finding:
    """Whether what is imported lies compiled beside its source, or can be laid there when it is first imported.

    Args:
        package: The package that stands for all of them.
    """
    assert package.__file__ is not None  # it has been imported from a file
    source, spec = Path(package.__file__), package.__spec__
    if spec is not None and spec.cached is not None and Path(spec.cached).is_file():
        return Finding("bytecode", "ok", "packages lie there compiled")
    if not sys.dont_write_bytecode and os.access(source.parent, os.W_OK):
        return Finding("bytecode", "ok", "packages are compiled once, when they are first imported")
    why = "PYTHONDONTWRITEBYTECODE is set" if sys.dont_write_bytecode else f"{source.parent} cannot be written to"
    return Finding(
        "bytecode",
        "note",
        f"{package.__name__} is not compiled, and {why}: every command compiles thousands of files, for ten seconds",
        f"compile them once: {sys.executable} -m compileall -q -j 0 {source.parent.parent}",
    )


def torch_build() -> Finding:
    """Checks which torch this is, and which device it will use."""
    cuda = torch.version.cuda
    if cuda is None:
        return Finding("torch", "ok", f"{torch.__version__}, for the CPU, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        return Finding("torch", "ok", f"{torch.__version__}, on {torch.cuda.get_device_name()}")
    return Finding(
        "torch",
        "note",
        f"{torch.__version__} is built for CUDA {cuda}, and no GPU can be used",
        "it works on the CPU; a CPU build is some gigabytes smaller (constraints-cpu.txt)",
    )


def memory() -> Finding:
    """Checks whether there is memory for a model, its index and its server."""
    available = free_memory(torch.device("cpu"))
    found = f"{readable_bytes(available)} available, {os.cpu_count()} cores"
    if available >= MEMORY_WANTED:
        return Finding("memory", "ok", found)
    return Finding("memory", "note", found, f"the demo wants about {readable_bytes(MEMORY_WANTED)}; close something")


def port(number: int = PORT) -> Finding:
    """Checks whether the port that BentoML serves on by default is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError:
            return Finding("port", "note", f"{number} is in use", "serve on another one: bentoml serve --port 3001")
    return Finding("port", "ok", f"{number} is free")


def usage_reports(do_not_track: str | None) -> Finding:
    """Checks whether BentoML is told not to report its use over the network."""
    if (do_not_track or "").lower() in ("true", "1"):
        return Finding("usage reports", "ok", "BENTOML_DO_NOT_TRACK is set: BentoML reports nothing")
    return Finding(
        "usage reports",
        "note",
        "BENTOML_DO_NOT_TRACK is not set; bento-audit sets it for itself, your own bentoml commands report their use",
        "export BENTOML_DO_NOT_TRACK=True",
    )


def build_tool() -> Finding:
    """Checks whether ``bentoml build`` finds the ``uv`` that it needs."""
    found = shutil.which("uv") or shutil.which("uv", path=os.path.dirname(sys.executable))
    if found is not None:
        return Finding("uv", "ok", found)
    return Finding("uv", "note", "not found", "`bentoml build` needs it: pip install uv")
