"""Downloads one pinned file of a package index with pip, and runs nothing of what it downloads.

pip rather than our own HTTP: where a network has mirrors, proxies or certificates of its own, pip is configured for it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from influence_engine.errors import DataError

# For a source distribution, pip wants the metadata even when it only downloads, and asks the package's build backend,
# which would run its setup.py. This stand-in comes first on the path of that process and answers from PKG-INFO instead.
# A package that names another backend than setuptools in its pyproject.toml would not meet it; none of ours does.
STAND_IN_BACKEND = """\
import email.parser, pathlib, shutil, sys


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    with open("PKG-INFO", "rb") as file:
        fields = email.parser.BytesParser().parse(file, headersonly=True)
    name = fields["Name"].replace("-", "_")
    folder = pathlib.Path(metadata_directory, "{}-{}.dist-info".format(name, fields["Version"]))
    folder.mkdir(parents=True)
    shutil.copyfile("PKG-INFO", folder / "METADATA")
    return folder.name


__legacy__ = sys.modules[__name__]
"""


def pip_download(requirement: str, sha256: str, into: Path) -> None:
    """Downloads the one file of ``requirement`` (``name==version``) with this SHA-256 to the folder ``into``.

    pip compares the digest before it opens the file.

    Raises:
        DataError: pip is missing, or failed; the message holds what it said.
    """
    with tempfile.TemporaryDirectory() as scratch:
        backend = Path(scratch, "setuptools", "build_meta.py")
        backend.parent.mkdir()
        backend.with_name("__init__.py").touch()
        backend.write_text(STAND_IN_BACKEND, encoding="utf-8")
        pinned = Path(scratch, "requirements.txt")
        pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [
            *_pip(),
            *("download", "--quiet", "--no-input", "--disable-pip-version-check", "--retries", "2"),
            *("--no-deps", "--require-hashes", "--no-build-isolation"),
            *("--dest", str(into), "--requirement", str(pinned)),
        ]
        # By the environment, not as a flag: newer versions of pip always do so and may drop the flag.
        environment = {**os.environ, "PYTHONPATH": scratch, "PIP_USE_PEP517": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise DataError(f"`pip download {requirement}` failed: {_reason(done.stderr)}", field=requirement)


def _pip() -> list[str]:
    """How to run pip: this environment's, else the wheel that Python itself carries for ``ensurepip``."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    ensurepip = importlib.util.find_spec("ensurepip")
    folders = [sysconfig.get_config_var("WHEEL_PKG_DIR")]
    if ensurepip is not None and ensurepip.origin is not None:
        folders.append(str(Path(ensurepip.origin).parent / "_bundled"))
    wheels = [wheel for folder in folders if folder for wheel in sorted(Path(folder).glob("pip-*.whl"))]
    if not wheels:
        raise DataError(f"{sys.executable} has no pip to download with; install pip into this environment", field="pip")
    return [sys.executable, str(wheels[-1] / "pip")]


def _reason(output: str) -> str:
    """The errors among pip's lines; all of them if none is marked so."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return "; ".join(errors or lines[-5:]) or "it said nothing"
