"""Write ``requirements.txt`` and ``requirements-test.txt`` from ``pyproject.toml``, where dependencies are declared.

    python scripts/make_requirements.py

The shell scripts use them with ``pip install -r``, because this application is not an installable package.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATED = "# Generated from pyproject.toml; do not edit. To make it again: python scripts/make_requirements.py\n"


def expand_extras(project: dict, extra: str) -> list[str]:
    """An extra's requirements, with references to the project's other extras (``name[other]``) expanded."""
    found = []
    for requirement in project["optional-dependencies"][extra]:
        another = re.fullmatch(rf"{re.escape(project['name'])}\[([\w-]+)\]", requirement)
        found += expand_extras(project, another[1]) if another else [requirement]
    return found


def make_requirements(project: dict) -> dict[str, str]:
    """The text of both files, by name.

    Args:
        project: the table ``[project]`` of pyproject.toml.
    """
    needed = "\n".join(project["dependencies"])
    tests = "\n".join(expand_extras(project, "test"))
    return {
        "requirements.txt": f"{GENERATED}{needed}\n",
        "requirements-test.txt": f"{GENERATED}-r requirements.txt\n{tests}\n",
    }


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, text in make_requirements(project).items():
        (ROOT / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
