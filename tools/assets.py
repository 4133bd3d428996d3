"""Fetch what the console's pages load and others have made, and lay it into the package: ``make assets``.

``tools/npm/package-lock.json`` says which versions, each with its digest; npm holds what it fetches to it. With
every package come the licence texts of what it bundles, for LICENSE-3rdParty.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tools" / "npm"
VENDOR = ROOT / "src" / "clara_results" / "api" / "console" / "static" / "vendor"
FILES = {
    "@niivue/niivue": ["dist/niivue.umd.js"],
    "htmx.org": ["dist/htmx.min.js"],
    "idiomorph": ["dist/idiomorph-ext.min.js"],
    "uplot": ["dist/uPlot.iife.min.js", "dist/uPlot.min.css"],
}
"""What is taken of each package."""
_NOT_BUNDLED = "@rollup/"
"""Of NiiVue's build only."""


def main() -> None:
    """Fetch and copy everything.

    Raises:
        subprocess.CalledProcessError: npm failed; it has said why.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(SOURCE / path, folder)
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit"], cwd=folder, check=True)
        shutil.rmtree(VENDOR, ignore_errors=True)
        VENDOR.mkdir(parents=True)
        modules = folder / "node_modules"
        for package, paths in FILES.items():
            for path in paths:
                shutil.copy(modules / package / path, VENDOR)
        (VENDOR / "packages.json").write_text(_packages(modules), encoding="utf-8")
    print(f"wrote {VENDOR.relative_to(ROOT)}")


def _packages(modules: Path) -> str:
    """Return name, version, licence and its text of everything that was fetched, as JSON."""
    lock = json.loads((SOURCE / "package-lock.json").read_text(encoding="utf-8"))
    found = []
    for place, entry in sorted(lock["packages"].items()):
        name = place.removeprefix("node_modules/")
        if not name or name.startswith(_NOT_BUNDLED):
            continue
        folder = modules / name
        texts = [path for path in folder.iterdir() if path.name.lower().startswith("licen")]
        text = texts[0] if texts else SOURCE / f"LICENSE-{name.rpartition('/')[2]}"
        found.append(
            {
                "name": name,
                "version": entry["version"],
                "licence": entry["license"],
                "text": text.read_text(encoding="utf-8").strip(),
            }
        )
    return json.dumps(found, indent=1) + "\n"


if __name__ == "__main__":
    main()
