"""Which of a task's files make one dataset.

In this order: what a ``config.meta`` names; a DICOM SEG and the series that it segments; ``X.output`` and ``X``; and what has
labels for its content, on the grid of something that has not.
"""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from clara_results.agents.render import dicom, files
from clara_results.agents.render.content import Content, look
from clara_results.agents.render.faults import INCOMPLETE, Unshowable, incomplete
from clara_results.agents.render.labels import printable
from clara_results.agents.render.reading import read
from clara_results.agents.render.segmentation import segmentation_of
from clara_results.agents.render.source import Group, Kind, LabelSource, Plan, Source, Verdict

CONFIG = ".meta"
DICOM_END = ".dcm"
OUTPUT = ".output"
"""What the stem of a label map ends with, after its volume's."""
CONFIG_LIMIT = 1 << 20


@dataclass(slots=True)
class _Draft:
    """A group that is being put together.

    Attributes:
        name: What it is called; None: as its density.
        density: URI by which the volume is known.
        labels: Those of its label maps.
        others: URIs of further files.
    """

    name: str | None
    density: str
    labels: list[str]
    others: list[str]


def plan(folder: Path, uris: Sequence[str], around: Sequence[str] = ()) -> Plan:
    """Find out what is to be made of a task's files.

    Args:
        folder: The files, by URI.
        uris: Theirs.
        around: URIs of further DICOM files of the payload, which are there as well: what a segmentation of the task
            segments may be among them.
    """
    return _Planner(folder, uris, around).plan()


class _Planner:
    def __init__(self, folder: Path, uris: Sequence[str], around: Sequence[str]) -> None:
        self._folder = folder
        self._around = sorted(around)
        self._uris = sorted(uris)
        self._there = set(uris)
        self._sources: dict[str, Source] = {}
        self._faults: dict[str, Unshowable] = {}
        self._drafts: list[_Draft] = []

    def plan(self) -> Plan:
        self._open_all()
        self._by_config()
        self._segmentations()
        self._by_name()
        self._by_content()
        groups = [self._group(draft) for draft in self._drafts]
        made = [group for group in groups if group is not None]
        used = {uri for group in made for uri in group.uris}
        return Plan(groups=made, verdicts=[self._verdict(uri) for uri in self._uris if uri not in used])  # fmt: skip

    # What the files are

    def _open_all(self) -> None:
        images: list[dicom.Image] = []
        for uri in self._uris:
            try:
                image = self._open(uri)
            except Unshowable as error:
                self._faults[uri] = error
                continue
            if isinstance(image, Source):
                self._sources[uri] = image
            elif image is not None:
                images.append(image)
        self._open_images(images)

    def _open(self, uri: str) -> Source | dicom.Image | None:
        end = files.suffix(uri)
        if end in files.METAIMAGE:
            return files.open_metaimage(self._folder, uri, self._there)
        if end in files.NIFTI:
            return files.open_nifti(self._folder, uri)
        path = self._folder / uri
        if dicom.is_dicom(path):
            return dicom.read_image(path, uri)
        if (
            PurePosixPath(uri).suffix.lower() == DICOM_END
        ):  # passed over, it would leave its series a slice short
            raise Unshowable("it can't be read as DICOM", code="damaged")
        return None

    def _open_images(self, images: Iterable[dicom.Image]) -> None:
        single = []
        for image in images:
            try:
                if image.header.get("SOPClassUID") in dicom.SEGMENTATIONS:
                    self._sources[image.uri] = segmentation_of(image)
                elif int(image.header.get("NumberOfFrames") or 1) > 1:
                    self._sources[image.uri] = dicom.multi_frame_of(image)
                else:
                    single.append(image)
            except Unshowable as error:
                self._faults[image.uri] = error
        found, faults = dicom.series_of(single)
        self._sources |= {source.uris[0]: source for source in found}
        for uris, fault in faults:
            self._faults |= dict.fromkeys(uris, fault)

    # What goes together

    def _by_config(self) -> None:
        for uri in self._uris:
            if PurePosixPath(uri).suffix.lower() == CONFIG:
                try:
                    draft = self._read_config(uri)
                except Unshowable as fault:
                    self._faults[uri] = fault
                    continue
                # Two that name one volume are one dataset: it is known by its volume.
                known = self._draft_at(draft.density)
                known.name = known.name or draft.name
                known.labels += draft.labels
                known.others += draft.others

    def _read_config(self, uri: str) -> _Draft:
        config = _json(self._folder / uri)
        if not isinstance(config, dict) or not isinstance(config.get("density"), str):
            raise Unshowable(
                'it is no JSON object with "density": the name of a volume', code="config-invalid"
            )
        masks = config.get("seg_masks") or []
        if not isinstance(masks, list):
            raise Unshowable('"seg_masks" is no list of names', code="config-invalid")
        named = {"density": config["density"]}
        named |= {f"seg_masks[{number}]": mask for number, mask in enumerate(masks)}
        named |= {"settings": config["settings"]} if config.get("settings") else {}
        found = {key: self._beside(uri, key, name) for key, name in named.items()}
        others = [uri, *([found["settings"]] if "settings" in found else [])]
        labels = [path for key, path in found.items() if key.startswith("seg_masks")]
        name = config.get("name")
        return _Draft(printable(str(name or "")) or None, found["density"], labels, others)

    def _beside(self, config: str, key: str, name: object) -> str:
        """Return the URI of a file that a config names."""
        found = os.path.normpath(PurePosixPath(config).parent / str(name))
        if not isinstance(name, str) or found not in self._there:
            raise Unshowable(
                f'its "{key}" names a file that is not among the task\'s: register it too',
                code="data-file-missing",
            )
        return found

    def _segmentations(self) -> None:
        own = [one for one in self._sources.values() if one.kind in {Kind.SERIES, Kind.FRAMES}]
        images = [*self._series_around(), *own]  # of two alike the task's own
        series = dicom.by_series(images)
        frames = {one.frame_of_reference: one for one in images if one.frame_of_reference}
        for source in list(self._free()):
            if source.kind is not Kind.SEGMENTATION:
                continue
            known = source.series is not None
            of = (
                series.get(source.series or "")
                if known
                else frames.get(source.frame_of_reference or "")
            )
            # Without its images it is shown by itself, over a volume made of its segments.
            of = of or source
            self._sources.setdefault(of.uris[0], of)
            self._draft_of(of).labels.append(source.uris[0])

    def _series_around(self) -> list[Source]:
        """Return the volumes in DICOM files that are not the task's."""
        images = []
        for uri in self._around:
            with suppress(Unshowable):  # nobody asked for it
                images.append(dicom.read_image(self._folder / uri, uri))
        found, _ = dicom.series_of(images)
        for image in images:
            if int(image.header.get("NumberOfFrames") or 1) > 1:
                with suppress(Unshowable):
                    found.append(dicom.multi_frame_of(image))
        return found

    def _by_name(self) -> None:
        """Pair X.output and X, in one folder or, where that leaves no doubt, in any."""
        free = [uri for uri in self._uris if files.suffix(uri) and not self._taken(uri)]
        for label in free:
            if not files.stem(label).endswith(OUTPUT):
                continue
            name = files.stem(label).removesuffix(OUTPUT)
            same = [uri for uri in self._uris if files.suffix(uri) and files.stem(uri) == name]
            near = [uri for uri in same if PurePosixPath(uri).parent == PurePosixPath(label).parent]
            found = near[:1] or (same if len(same) == 1 else [])
            if found:
                self._draft_at(found[0]).labels.append(label)

    def _by_content(self) -> None:
        """Find label maps among what shares a grid; what is none becomes a dataset of its own."""
        free = [source for source in self._free() if source.grid is not None]
        while free:
            first = free[0]
            alike = [one for one in free if one.grid and first.grid and one.grid.same(first.grid)]
            free = [one for one in free if one not in alike]
            volumes = [draft.density for draft in self._drafts if self._on(draft, first)]
            if len(alike) + len(volumes) == 1:
                self._draft_of(first)
                continue
            contents = [(source, self._content(source)) for source in alike]
            labels = [(one, content) for one, content in contents if content and content.labels]
            volumes += [source.uris[0] for source, content in contents if not content or not content.labels]  # fmt: skip
            if (
                not volumes
            ):  # all may be label maps: the one with the most in it is looked at as the volume
                most = max(labels, key=lambda pair: pair[1].distinct)
                labels.remove(most)
                volumes = [most[0].uris[0]]
            for uri in volumes:
                self._draft_at(uri)
            for source, _ in labels:
                nearest = max(volumes, key=partial(_likeness, source.uris[0]))
                self._draft_at(nearest).labels.append(source.uris[0])

    def _on(self, draft: _Draft, source: Source) -> bool:
        density = self._sources.get(draft.density)
        return bool(density and density.grid and source.grid and density.grid.same(source.grid))

    def _content(self, source: Source) -> Content | None:
        if source.kind is not Kind.VOLUME:
            return None  # an image is what it says it is
        try:
            return look(read(self._folder, source))
        except Unshowable as fault:
            self._faults[source.uris[0]] = fault
            return None

    def _free(self) -> Iterable[Source]:
        return [source for uri, source in self._sources.items() if not self._taken(uri)]

    def _taken(self, uri: str) -> bool:
        return any(uri == draft.density or uri in draft.labels for draft in self._drafts)

    def _draft_of(self, source: Source) -> _Draft:
        return self._draft_at(source.uris[0])

    def _draft_at(self, density: str) -> _Draft:
        for draft in self._drafts:
            if draft.density == density:
                return draft
        draft = _Draft(None, density, [], [])
        self._drafts.append(draft)
        return draft

    # What comes of it

    def _group(self, draft: _Draft) -> Group | None:
        """Return a group; None if something of it can't be shown: then nothing of it is."""
        named = [draft.density, *draft.labels]
        for uri in named:
            if uri not in self._sources and uri not in self._faults:
                self._faults[uri] = Unshowable("it is no volume", code="unsupported-volume")
        density = self._sources.get(draft.density)
        for uri in draft.labels:
            source = self._sources.get(uri)
            if source and source.kind is Kind.SEGMENTATION:
                continue  # it is brought onto the grid
            if density and density.grid and source and source.grid and not source.grid.same(density.grid):  # fmt: skip
                self._faults[uri] = Unshowable(
                    "its voxels are not where its volume's are: resample it to that grid",
                    code="grid-differs",
                )
        bad = [uri for uri in named if uri in self._faults]
        members = list(dict.fromkeys([*named, *draft.others]))
        for uri in named:
            members += self._sources[uri].uris if uri in self._sources else self._data_of(uri)
        if bad or density is None:
            for uri in dict.fromkeys(members):
                self._faults.setdefault(uri, incomplete())
            return None
        labels = [
            LabelSource(source=self._sources[uri], description=self._description(uri))
            for uri in dict.fromkeys(draft.labels)
        ]
        return Group(
            name=draft.name or density.name, density=density, labels=labels, others=draft.others
        )

    def _data_of(self, uri: str) -> list[str]:
        """Return the voxels' file that goes with a bad header: the one of its stem."""
        path = PurePosixPath(uri)
        ends = (".raw", ".zraw", ".RAW", ".ZRAW")
        near = [str(path.with_name(files.stem(uri) + end)) for end in ends]
        return [each for each in near if each in self._there]

    def _description(self, uri: str) -> str | None:
        """Return the JSON file that says what a label map marks: of its name, in one folder or, if single, in any."""
        name = files.stem(uri) + ".json"
        same = [each for each in self._uris if PurePosixPath(each).name == name]
        near = [each for each in same if PurePosixPath(each).parent == PurePosixPath(uri).parent]
        found = near or (same if len(same) == 1 else [])
        return found[0] if found and described(self._folder / found[0]) else None

    def _verdict(self, uri: str) -> Verdict:
        fault = self._faults.get(uri)
        if fault is None:
            for header, cause in list(self._faults.items()):
                if uri in self._data_of(header):
                    fault = cause if cause.code == INCOMPLETE else incomplete()
        if fault is None:
            return Verdict(
                uri=uri,
                rejected=False,
                code=dicom.NOT_A_VOLUME,
                message="it is no volume, and belongs to none",
            )
        rejected = fault.code != dicom.NOT_A_VOLUME
        return Verdict(uri=uri, rejected=rejected, code=fault.code, message=str(fault))


def described(path: Path) -> list[dict[str, Any]]:
    """Return what a JSON file says that a label map marks (``segments``); empty: it says nothing of that."""
    try:
        found = _json(path)
    except Unshowable:
        return []
    segments = found.get("segments") if isinstance(found, dict) else None
    return [
        one
        for one in (segments if isinstance(segments, list) else [])
        if isinstance(one, dict) and isinstance(one.get("value"), int) and one.get("name")
    ]


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > CONFIG_LIMIT:
            raise Unshowable("it is too large", code="config-invalid")
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Unshowable("it is no JSON", code="config-invalid") from error


def _likeness(one: str, other: str) -> int:
    """Return how many characters two files' names have in common at their beginning."""
    pairs = zip(PurePosixPath(one).name, PurePosixPath(other).name, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
