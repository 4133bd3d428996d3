"""YAML documents, read strictly, with the place of everything in them."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from clara_results.errors import UnreadableInput
from clara_results.pipeline.faults import START, Faults, Position, Text

SIZE_LIMIT = 1 << 20
"""Bytes; a definition is a page or two."""

_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"
_KINDS = {MappingNode: "a mapping (key: value)", SequenceNode: "a list", ScalarNode: "a text"}
_VARIABLE = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


class Source:
    """A YAML document, and what is wrong in it.

    Attributes:
        faults: Gathers what is wrong.
        values: What ``${{…}}`` in texts stand for, by their names; None: they are not replaced.
        elsewhere: What else has a key of a name, in words, for who lost the indentation.
    """

    def __init__(self, file: str, elsewhere: Mapping[str, str] | None = None) -> None:
        self.faults = Faults(file)
        self.values: Mapping[str, str] | None = None
        self.elsewhere = elsewhere or {}

    def document(self, text: str) -> Node | None:
        """Return the one document of a text; None where it is none, which is noted as a fault."""
        try:
            node: Node | None = YAML(typ="rt", pure=True).compose(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            at = Position(mark.line + 1, mark.column + 1) if mark else START
            told = " ".join(part for part in (error.context, error.problem) if part)
            self.faults.add(at, "", "yaml", f"that is no YAML: {told}{_hint(text, at)}")
            return None
        except RecursionError:
            self.faults.add(
                START, "", "yaml", "that is no definition: too many levels within each other"
            )
            return None
        except YAMLError as error:  # a character that YAML does not allow
            self.faults.add(START, "", "yaml", f"that is no YAML: {str(error).splitlines()[0]}")
            return None
        if node is None:
            self.faults.add(START, "", "empty", "the file is empty")
        return node

    def mapping(self, node: Node, field: str, known: Iterable[str]) -> dict[str, Node]:
        """Return a mapping's values by key. Keys without a value are left out; faults are noted.

        Args:
            node: What should be a mapping.
            field: Where it is.
            known: The keys that it may have.
        """
        known = sorted(known)
        values: dict[str, Node] = {}
        for key, value, where in self._pairs(node, field):
            if key in known:
                if not is_null(value):
                    values[key] = value
                continue
            home = self.elsewhere.get(key)
            remedy = f" ({home} has one: check the indentation)" if home else guess(key, known)
            self.faults.add(
                key.at,
                where,
                "unknown-key",
                f"there is no key {key!r} here{remedy}; known: {', '.join(known)}",
            )
            if meant := nearest(key, known):
                values.setdefault(meant, value)  # so that it is not said to be missing as well
        return values

    def entries(self, node: Node, field: str) -> list[tuple[Text, Node, str]]:
        """Return the key, the value and the place of each entry of a mapping with free keys."""
        return list(self._pairs(node, field))

    def _pairs(self, node: Node, field: str) -> Iterator[tuple[Text, Node, str]]:
        if not self._is(node, MappingNode, field):
            return
        seen: set[str] = set()
        for key_node, value in node.value:
            at = position(key_node)
            if not isinstance(key_node, ScalarNode) or key_node.tag == _MERGE:
                self.faults.add(at, field, "key", "a key must be a plain text")
                continue
            key = Text(key_node.value, at)
            where = f"{field}.{key}" if field else str(key)
            if key in seen:
                self.faults.add(at, where, "duplicate-key", f"the key {key!r} comes twice here")
            else:
                yield key, value, where
            seen.add(key)

    def items(self, node: Node, field: str) -> list[tuple[Node, str]]:
        """Return a list's items and the place of each."""
        if not self._is(node, SequenceNode, field):
            return []
        return [(item, f"{field}[{index}]") for index, item in enumerate(node.value)]

    def text(self, node: Node, field: str) -> Text | None:
        """Return a text as it is written (``0.10`` stays that), its ``${{…}}`` filled in."""
        if is_null(node):
            self.faults.add(position(node), field, "missing", "a text is wanted; nothing is given")
            return None
        if not self._is(node, ScalarNode, field):
            return None
        at, raw = position(node), node.value
        return Text(raw if self.values is None else self._filled(raw, at, field), at, raw)

    def _filled(self, raw: str, at: Position, field: str) -> str:
        values = self.values or {}

        def fill(match: re.Match[str]) -> str:
            name = match[1]
            if name not in values:
                self.faults.add(
                    at,
                    field,
                    "undeclared",
                    f"{match[0]} is neither a parameter of this pipeline nor the platform's"
                    f"{guess(name, values)}: declare it under parameters, with its default",
                )
            return values.get(name, "")

        filled = _VARIABLE.sub(fill, raw)
        if "${{" in _VARIABLE.sub("", raw):
            self.faults.add(at, field, "undeclared", "${{ is not closed by }}")
        return filled

    def number(self, node: Node, field: str, least: float, *, whole: bool = True) -> float | None:
        """Return a number that is at least ``least``."""
        text = self.text(node, field)
        if text is None:
            return None
        try:
            found = float(text)
        except ValueError:
            found = float("nan")
        if not least <= found < float("inf") or (whole and found != int(found)):
            kind = "a whole number" if whole else "a number"
            self.faults.add(
                text.at, field, "number", f"{text!r} is not {kind} that is at least {least:g}"
            )
            return None
        return found

    def require(self, values: Mapping[str, Node], keys: Iterable[str], node: Node, field: str) -> None:  # fmt: skip
        """Note each key that a mapping lacks."""
        for key in keys:
            if key not in values and isinstance(node, MappingNode):
                where = f"{field}.{key}" if field else key
                self.faults.add(position(node), where, "missing", f"{key} is missing here")

    def _is(self, node: Node, kind: type[Node], field: str) -> bool:
        if isinstance(node, kind):
            return True
        remedy = ""
        if isinstance(node, SequenceNode) and field.endswith("tag"):
            remedy = "; [IMAGE_TAG] stands for the image's tag: write it without brackets"
        self.faults.add(
            position(node),
            field,
            "wrong-kind",
            f"{_KINDS[kind]} is wanted here, not {_KINDS.get(type(node), 'that')}{remedy}",
        )
        return False


def fill(raw: str, values: Mapping[str, str]) -> str:
    """Return a text with its ``${{…}}`` replaced, all of which are known."""
    return _VARIABLE.sub(lambda match: values[match[1]], raw)


def used(raw: str) -> set[str]:
    """Return the names in a text's ``${{…}}``."""
    return set(_VARIABLE.findall(raw))


def position(node: Node) -> Position:
    """Return where a node begins."""
    return Position(node.start_mark.line + 1, node.start_mark.column + 1)


def is_null(node: Node) -> bool:
    """Tell whether nothing is given."""
    return isinstance(node, ScalarNode) and node.tag == _NULL


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return what a misspelt name was probably meant to be."""
    spelt = {each.lower().replace("_", "-"): each for each in known}
    near = difflib.get_close_matches(name.lower().replace("_", "-"), spelt, n=1)
    return spelt[near[0]] if near else None


def guess(name: str, known: Iterable[str]) -> str:
    """Return what a misspelt name was probably meant to be, in words; nothing where that is open."""
    meant = nearest(name, known)
    return f" (did you mean {meant}?)" if meant else ""


def read_text(path: Path) -> str:
    """Read a file of a person's.

    Raises:
        UnreadableInput: It can't be read, is no UTF-8, or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
        if len(content) > SIZE_LIMIT:
            raise UnreadableInput(f"{path} has more than {SIZE_LIMIT} bytes: that is no definition")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UnreadableInput(f"{path} can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{path} is no text in UTF-8 (byte {error.start})") from error


def _hint(text: str, at: Position) -> str:
    line = (text.splitlines() or [""])[min(at.line, len(text.splitlines())) - 1]
    if "${{" in line and ("[" in line or line.lstrip().startswith("{")):
        return '; within [ ] or { } write ${{…}} in quotation marks: "${{name}}"'
    if "\t" in line:
        return "; indent by spaces, not by tabs"
    return ""
