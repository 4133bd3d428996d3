"""Writes the reference pages that say what the code says: settings, and the HTTP contract's calls.

A test fails while they differ from what this makes; ``make docs`` mends it.
"""

import argparse
import sys
from pathlib import Path

from fastapi import FastAPI

from clara_results.api.app import create_app
from clara_results.settings import FIELDS, variable

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
METHODS = ("get", "head", "post", "put", "delete")


def settings_page() -> str:
    """Return the page on settings."""
    rows = [
        f"| `{name}` | `{variable(name)}` | {_default(field.default)} | {field.metadata['help'].replace('|', ',')} |"
        for name, field in FIELDS.items()
    ]
    return "\n".join(
        [
            "# Settings",
            "",
            "Each setting comes from a command's flag (`--retry-delay`), else from its environment variable, else from the TOML",
            "file that `--config` or `CLARA_RESULTS_CONFIG` names (`retry_delay = 30`), else it has its default. All are checked",
            "together, and all that is wrong is said at once. `clara-results config show` prints each with where it came from.",
            "",
            "Variables that Kubernetes injects for services (`CLARA_RESULTS_PORT=tcp://…`) are not settings; they are passed over.",
            "",
            "| setting | variable | default | what it is |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def api_page() -> str:
    """Return the page on the HTTP contract."""
    document = _app().openapi()
    lines = [
        "# HTTP contract",
        "",
        "Base URL `http://HOST:8088`; JSON in camelCase. A running service shows every field at `/docs` and gives the OpenAPI",
        "document at `/openapi.json`. Errors are [problems](errors.md) with a stable `code`. A lease, its token and what an",
        "agent owes are in [states](states.md).",
    ]
    calls: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                operation = operations[method]
                text = operation.get("description") or operation["summary"]
                calls.setdefault(operation["tags"][0], []).append(
                    f"| `{method.upper()} {path}` | {' '.join(text.split())} |"
                )
    for tag, rows in calls.items():
        lines += ["", f"## {tag}", "", "| call | does |", "| --- | --- |", *rows]
    return "\n".join([*lines, ""])


PAGES = {"settings.md": settings_page, "api.md": api_page}


def _default(value: object) -> str:
    if value is None or value == () or value == "":
        return ""
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else str(value)


def _app() -> FastAPI:
    def nothing(*_: object) -> None:
        raise NotImplementedError("only its document is wanted")

    return create_app(nothing, nothing)  # type: ignore[arg-type]


def main() -> int:
    """Write the pages, or with ``--check`` say which differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a page differs"
    )
    check = parser.parse_args().check
    stale = []
    for name, make in PAGES.items():
        path = REFERENCE / name
        if not path.exists() or path.read_text(encoding="utf-8") != make():
            stale.append(name)
            if not check:
                path.write_text(make(), encoding="utf-8")
    if stale and check:
        sys.stderr.write(f"run make docs: {', '.join(stale)} differ from the code\n")
    return int(bool(stale) and check)


if __name__ == "__main__":
    sys.exit(main())
