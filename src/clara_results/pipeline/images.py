"""``images.yaml``: which local command stands for an operator's image, where there is no container engine.

::

    images:
      clara/dicom-reader:
        folder: reader                          # the working folder; relative to this file; default: this file's
        command: ["python", "-m", "dicom_reader"]  # for operators whose definition has no command
        timeout: 600                            # seconds; default: the run's

An operator whose definition has a ``command`` runs that, in the folder.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml.nodes import Node

from clara_results.pipeline.definition import Definition
from clara_results.pipeline.faults import Fault, Faults, Text
from clara_results.pipeline.source import Source, guess, position, read_text

_IMAGE = ("folder", "command", "timeout")


@dataclass(frozen=True, slots=True)
class LocalImage:
    """What stands for an image on this machine.

    Attributes:
        folder: Absolute working folder.
        command: Program and arguments; None: operators must have their own.
        timeout: Seconds for which it may run; None: as the run says.
    """

    folder: Path
    command: tuple[Text, ...] | None
    timeout: float | None


def read_images(path: Path) -> tuple[dict[str, LocalImage], list[Fault]]:
    """Read an ``images.yaml``.

    Returns:
        What stands for each image (named without its tag), and all that is wrong with the file.

    Raises:
        UnreadableInput: The file can't be read.
    """
    source = Source(str(path))
    found: dict[str, LocalImage] = {}
    node = source.document(read_text(path))
    if node is not None:
        top = source.mapping(node, "", ("images",))
        source.require(top, ("images",), node, "")
        for image, entry, where in source.entries(top["images"], "images") if top else ():
            found[str(image)] = _image(source, entry, where, path.absolute().parent)
    return found, source.faults.found


def _image(source: Source, node: Node, where: str, base: Path) -> LocalImage:
    keys = source.mapping(node, where, _IMAGE)
    folder = source.text(keys["folder"], f"{where}.folder") if "folder" in keys else None
    place = Path(os.path.normpath(base / (folder or ".")))
    if folder is not None and not place.is_dir():
        source.faults.add(
            folder.at, f"{where}.folder", "missing-folder", f"there is no folder {place}"
        )
    command: tuple[Text, ...] | None = None
    if "command" in keys:
        words = source.items(keys["command"], f"{where}.command")
        command = tuple(t for item, at in words if (t := source.text(item, at)) is not None)
        if not words:
            at = position(keys["command"])
            source.faults.add(at, f"{where}.command", "missing", "the command is empty")
    timeout = source.number(keys["timeout"], f"{where}.timeout", 0.001, whole=False) if "timeout" in keys else None  # fmt: skip
    return LocalImage(place, command or None, timeout)


def image_faults(
    file: str, definition: Definition, images_file: str, images: Mapping[str, LocalImage]
) -> list[Fault]:
    """Return what keeps a definition's operators from being run here.

    Args:
        file: What the definition's file is called.
        definition: The definition.
        images_file: What the file of the images is called.
        images: What it says.
    """
    faults = Faults(file)
    for operator in definition.operators:
        image = operator.container.image
        local = images.get(image)
        where = f"operator {operator.name}"
        if local is None:
            faults.add(
                image.at, where, "missing-image",
                f"{images_file} has no command for the image {image!r}{guess(image, images)}",
            )  # fmt: skip
            continue
        command = operator.container.command or local.command
        if command is None:
            faults.add(
                image.at, where, "missing-command",
                f"neither the definition nor {images_file} has a command for {image!r}",
            )  # fmt: skip
        elif program(command[0], local.folder) is None:
            faults.add(
                operator.container.command[0].at if operator.container.command else image.at,
                where, "missing-program", f"there is no program {command[0]!r} on this machine (looked from {local.folder})",
            )  # fmt: skip
        if operator.services:
            faults.add(
                operator.services[0].at, where, "services",
                f"the service {operator.services[0]!r} can't be started here: only a cluster can run services",
            )  # fmt: skip
    return faults.found


def program(name: str, folder: Path) -> str | None:
    """Return where a program is, None if it is nowhere; ``python`` is the one that runs this."""
    if "/" in name:
        return shutil.which(name if name.startswith("/") else str(folder / name))
    return shutil.which(name, path=search_path())


def search_path() -> str:
    """Return the PATH that operators run with: the running Python's own programs come first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
