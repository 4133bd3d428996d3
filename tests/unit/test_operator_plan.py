"""URIs, digests and the idempotency key."""

import hashlib
import json
import os
import random
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_results.errors import InvalidInput, UnreadableInput, UnsafeUri
from clara_results.operator import data
from clara_results.operator.plan import PlannedFile, digest, idempotency_key, make_plan
from clara_results.operator.request import Request
from clara_results.operator.scan import Found, Input, scan

REQUEST = Request(
    agent="clarascu",
    data=["Orthanc"],
    job_id="job1",
    pipeline_id="pipeline1",
    payload_id="payload1",
    operator="register-op",
    inputs=(),
    service=None,
    token=None,
    timeout=1.0,
)
MOMENT = datetime(2026, 11, 22, 8, 30, 0, 5, tzinfo=UTC)
IN_PLACE = PlannedFile("/in/a", "out/a", 5, modified=MOMENT)
UPLOAD = PlannedFile("/in/a", "op/in/a", 5, sha256="ab" * 32)


def scanned(*inputs: Input) -> list[Found]:
    return scan(inputs, pytest.fail)


def key(
    *files: PlannedFile, job: str = "j", operator: str = "o", agent: str = "a", given: str = "null"
) -> str:
    elements = None if given == "null" else data.parse(given)
    return idempotency_key(job, operator, agent, elements, files)


def test_the_key_is_what_its_rule_says() -> None:
    text = (
        '["j","o","a",[{"x":1}],[["out/a",5,"2026-11-22T08:30:00.000005Z"],'
        f'["op/in/a",5,"{"ab" * 32}"]]]'
    )
    assert key(IN_PLACE, UPLOAD, given='[ {"x": 1} ]') == hashlib.sha256(text.encode()).hexdigest()


def test_anything_that_is_covered_changes_the_key() -> None:
    keys = [
        key(IN_PLACE),
        key(IN_PLACE, job="k"),
        key(IN_PLACE, operator="p"),
        key(IN_PLACE, agent="b"),
        *(key(IN_PLACE, given=text) for text in ("[1]", "[1.0]", '["1"]', "[1,2]", "[2,1]")),
        *(key(IN_PLACE, given=text) for text in ("[null]", '[{"a":1}]', '[{"a":2}]')),
        key(replace(IN_PLACE, uri="out/b")),
        key(replace(IN_PLACE, size=6)),
        key(replace(IN_PLACE, modified=MOMENT.replace(microsecond=6))),
        key(UPLOAD),
        key(replace(UPLOAD, sha256="ac" * 32)),
        key(IN_PLACE, UPLOAD),
    ]
    assert len(set(keys)) == len(keys)


@given(st.dictionaries(st.text("abc"), st.integers(), max_size=5), st.randoms())
def test_space_and_the_order_of_names_do_not_change_the_key(
    element: dict[str, int], dice: random.Random
) -> None:
    pairs = list(element.items())
    dice.shuffle(pairs)
    assert key(given=json.dumps([element])) == key(given=json.dumps([dict(pairs)], indent=2))


def test_files_in_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("12")
    os.utime(tmp_path / "a", ns=(0, 1_000_000_000))
    plan = make_plan(REQUEST, scanned(Input("in", str(tmp_path), "liver/out")))
    second = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert plan.files == (PlannedFile(str(tmp_path / "a"), "liver/out/a", 2, second),)
    assert plan.uploads == []
    body = plan.registration(REQUEST)
    assert body.verify
    assert body.files is not None
    assert (body.files[0].modified, body.files[0].sha256) == (second, None)
    assert make_plan(REQUEST, scanned(Input("in", str(tmp_path), ""))).files[0].uri == "a"


def test_files_to_be_uploaded(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_text("12")
    plan = make_plan(REQUEST, scanned(Input("In", str(tmp_path))))
    sha256 = hashlib.sha256(b"12").hexdigest()
    uri = f"register-op/In/{plan.key[:12]}/b/c"
    assert plan.files == (PlannedFile(str(tmp_path / "b" / "c"), uri, 2, None, sha256),)
    assert plan.uploads == list(plan.files)
    assert not plan.registration(REQUEST).verify
    keyless = PlannedFile("", "register-op/In/b/c", 2, None, sha256)
    expected = idempotency_key("job1", "register-op", "clarascu", ["Orthanc"], [keyless])
    assert plan.key == expected


def test_the_time_of_an_upload_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("12")
    before = make_plan(REQUEST, scanned(Input("in", str(tmp_path)))).key
    os.utime(tmp_path / "a", ns=(0, 1))
    assert make_plan(REQUEST, scanned(Input("in", str(tmp_path)))).key == before


def test_files_are_in_the_order_of_their_uris_bytes(tmp_path: Path) -> None:
    for name in ("x/2", "x/10", "y/1", "x/ä", "x/Z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    inputs = [Input("x", str(tmp_path / "x"), "b"), Input("y", str(tmp_path / "y"), "a")]
    files = make_plan(REQUEST, scanned(*inputs)).files
    assert [file.uri for file in files] == ["a/1", "b/10", "b/2", "b/Z", "b/ä"]


def test_one_uri_of_two_inputs(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("12")
        os.utime(tmp_path / name / "a", ns=(0, 0))
    inputs = [Input("x", str(tmp_path / "x"), "p"), Input("y", str(tmp_path / "y"), "p")]
    assert len(make_plan(REQUEST, scanned(*inputs)).files) == 1
    os.utime(tmp_path / "y" / "a", ns=(0, 1000))
    with pytest.raises(InvalidInput, match="would both be 'p/a' in the payload: check --input-uri"):
        make_plan(REQUEST, scanned(*inputs))


def test_a_whole_uri_that_is_too_long(tmp_path: Path) -> None:
    name = "a" * 250
    (tmp_path / name).touch()
    with pytest.raises(UnsafeUri, match="1024 characters"):
        make_plan(REQUEST, scanned(Input("in", str(tmp_path), "/".join(["b" * 250] * 4))))
    long = Found(Input("i" * 255, str(tmp_path)), "/".join([name] * 3), 0, MOMENT)
    with pytest.raises(UnsafeUri, match="1024 characters"):  # said before anything is read
        make_plan(replace(REQUEST, operator="o" * 255), [long])


def test_a_file_that_is_gone_when_it_is_digested(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    found = scanned(Input("in", str(tmp_path)))
    (tmp_path / "a").unlink()
    with pytest.raises(UnreadableInput, match="can't be read: No such file"):
        make_plan(REQUEST, found)


def test_the_digest_of_a_large_file(tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(content)
    assert digest(str(tmp_path / "a")) == (3_000_001, hashlib.sha256(content).hexdigest())
