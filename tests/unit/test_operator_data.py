"""``--data``: what is taken, what is refused, and what the message shows."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_results.errors import InvalidInput
from clara_results.operator import data

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc", max_size=3), inner),
    max_leaves=8,
)
ARRAYS = st.lists(JSON_VALUES, min_size=1, max_size=4)


@given(ARRAYS)
def test_every_json_array_keeps_its_elements_and_their_order(elements: list[object]) -> None:
    parsed = data.parse(json.dumps(elements, indent=1))
    assert parsed == elements
    assert [type(item) for item in parsed] == [type(item) for item in elements]


@given(ARRAYS)
def test_shell_quoted_forms_mean_the_same(elements: list[object]) -> None:
    text = json.dumps(elements)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    for quoted in (escaped, f'"{escaped}"', f"'{escaped}'", f"'{text}'", f'"{text}"', f" {text}\n"):
        assert data.parse(quoted) == elements


def test_a_string_with_an_escape_is_not_unquoted() -> None:
    assert data.parse(r'["C:\\a \"b\""]') == [r'C:\a "b"']


def test_names_in_objects_are_sorted_and_numbers_keep_their_kind() -> None:
    assert data.canonical(data.parse('[{"b":1.0,"a":1},2]')) == '[{"a":1,"b":1.0},2]'


def test_huge_integers_are_exact() -> None:
    assert data.parse(f"[{10**400}]") == [10**400]


@pytest.mark.parametrize(
    ("text", "fault", "place"),
    [
        ("", "Expecting value", (1, 1)),
        ("Orthanc", "Expecting value", (1, 1)),
        ("[Orthanc]", "Expecting value", (1, 2)),
        ('["a",,"b"]', "Expecting value", (1, 6)),
        ('["a"\n"b"]', "Expecting ',' delimiter", (2, 1)),
        ('["a"] x', "Extra data", (1, 7)),
        ('"Orthanc"', "it is a string, not an array", (1, 1)),
        (' {"a":1}', "it is an object, not an array", (1, 2)),
        ("null", "it is null, not an array", (1, 1)),
        ("true", "it is true or false, not an array", (1, 1)),
        ("7", "it is a number, not an array", (1, 1)),
        ("[]", "the array is empty", (1, 1)),
        ('["NaN", NaN]', "NaN is not JSON", (1, 9)),
        ("[-Infinity]", "-Infinity is not JSON", (1, 2)),
        ('["1e999",1e999]', "1e999 is beyond a double's range", (1, 10)),
        ('[{"a":1,"a":2}]', "the name 'a' comes twice", (1, 1)),
        (r'["a","\ud800"]', "half a surrogate pair", (1, 7)),
        ('["\udcff"]', "half a surrogate pair", (1, 3)),
        ("[" * 70 + "1" + "]" * 70, "more than 64 levels deep", (1, 1)),
        ("[" * 100_000, "more than 64 levels deep", (1, 1)),
        ("[" + "9" * 5000 + "]", "Exceeds the limit", (1, 1)),
        ('["' + "x" * data.SIZE_LIMIT + '"]', "1048576 is the most", (1, 1)),
    ],
    ids=range(22),
)
def test_what_is_wrong_is_told_with_its_place_and_an_example(
    text: str, fault: str, place: tuple[int, int]
) -> None:
    with pytest.raises(InvalidInput) as raised:
        data.parse(text)
    message = str(raised.value)
    assert raised.value.exit_code == 2
    assert raised.value.code == "invalid-data"
    assert fault in message
    assert f"(line {place[0]}, column {place[1]})" in message
    assert """--data '["Orthanc","DCM4CHEE"]'""" in message


def test_the_caret_stands_below_the_fault_also_in_a_long_line() -> None:
    with pytest.raises(InvalidInput) as raised:
        data.parse("[" + '"x",' * 50 + "?" + ',"x"' * 50 + "]")
    _, shown, caret, _ = str(raised.value).splitlines()
    assert shown[caret.index("^")] == "?"
    assert len(shown) < 80


def test_64_levels_are_taken() -> None:
    assert data.parse("[" * 64 + "]" * 64)
