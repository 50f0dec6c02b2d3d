"""Plugins of other people, installed as pip leaves them, but without a build."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

__all__ = ["install_jobs"]


def install_jobs(folder: Path, source: str, **jobs: str) -> dict[str, str]:
    """Install a module with jobs, each class by its name; return the variables with which a command finds them."""
    (folder / "other_peoples_jobs.py").write_text(dedent(source))
    info = folder / "other_peoples_jobs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-peoples-jobs\nVersion: 1.0\n")
    points = "".join(f"{name} = other_peoples_jobs:{cls}\n" for name, cls in jobs.items())
    (info / "entry_points.txt").write_text(f"[owm_outbox.jobs]\n{points}")
    return {"PYTHONPATH": str(folder)}
