"""Destinations over HTTP, in our shape and in the original's."""

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import LocalService

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
OURS, ORIGINAL = "/api/destinations", "/api/config/destinationaetitle"
BODY: dict[str, Any] = {
    "name": "Orthanc",
    "aeTitle": "ORTHANC",
    "host": "pacs.example",
    "port": 104,
}
THEIRS: dict[str, Any] = {"name": "MYPACS", "aeTitle": "MYPACSAET", "hostIp": "10.20.30.2", "port": 1104}  # fmt: skip


def has(body: dict[str, Any], expected: dict[str, Any]) -> bool:
    return {name: body.get(name) for name in expected} == expected


def test_a_destination_is_added_shown_changed_and_removed(local: "LocalService") -> None:
    assert local.call("GET", OURS).json["items"] == []
    added = local.call("POST", OURS, BODY)
    assert added.status == 201
    assert has(added.json, BODY | {"kind": "dicom", "callingAeTitle": None})
    shown = local.call("GET", f"{OURS}/ORTHANC")  # names compare without case
    assert has(shown.json, BODY)
    changed = BODY | {"port": 4242, "host": "fe80::1", "callingAeTitle": "Clara SCU"}
    assert has(local.call("PUT", f"{OURS}/orthanc", changed).json, changed)
    assert has(local.call("GET", f"{OURS}/Orthanc").json, changed)
    removed = local.call("DELETE", f"{OURS}/oRTHANC")
    assert (removed.status, removed.data) == (204, b"")
    local.call("GET", f"{OURS}/Orthanc").problem(404, "destination-not-found")


def test_what_is_not_there_is_not_found(local: "LocalService") -> None:
    for method, path, body in (
        ("GET", "", None), ("PUT", "", BODY), ("DELETE", "", None), ("POST", "/test", None),
    ):  # fmt: skip
        answer = local.call(method, f"{OURS}/none{path}", body)
        answer.problem(404, "destination-not-found")


@pytest.mark.parametrize("name", ["Orthanc", "ORTHANC", "orthanc"])
def test_a_name_that_is_taken_is_refused_in_any_case(local: "LocalService", name: str) -> None:
    local.call("POST", OURS, BODY)
    local.call("POST", OURS, BODY | {"name": name}).problem(409, "destination-exists")
    assert len(local.client.destinations()) == 1


def test_a_destination_may_be_renamed_to_a_free_name_only(local: "LocalService") -> None:
    local.call("POST", OURS, BODY)
    local.call("POST", OURS, BODY | {"name": "Other"})
    answer = local.call("PUT", f"{OURS}/Orthanc", BODY | {"name": "OTHER"})
    answer.problem(409, "destination-exists")
    assert local.call("PUT", f"{OURS}/Orthanc", BODY | {"name": "ORTHANC"}).status == 200
    assert local.call("PUT", f"{OURS}/orthanc", BODY | {"name": "Third"}).status == 200
    assert [item.name for item in local.client.destinations()] == ["Other", "Third"]


def test_names_with_odd_characters_are_found_again(local: "LocalService") -> None:
    for name in ("Zürich 3", "50% off?", "a#b", "..a", "+"):
        added = local.call("POST", OURS, BODY | {"name": name})
        assert added.status == 201, added.data
        assert local.client.destination(name).name == name
        local.client.remove_destination(name)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"), ({"name": "a/b"}, "name"), ({"name": ".."}, "name"),
        ({"name": "a\0"}, "name"), ({"name": "\ud800"}, "name"),
        ({"aeTitle": ""}, "aeTitle"), ({"aeTitle": "X" * 17}, "aeTitle"),
        ({"aeTitle": "A\\B"}, "aeTitle"), ({"aeTitle": "   "}, "aeTitle"), ({"aeTitle": "Ä"}, "aeTitle"),
        ({"host": ""}, "host"), ({"host": "[::1]"}, "host"), ({"host": "pacs:104"}, "host"),
        ({"host": "1.2.3.400"}, "host"), ({"port": 0}, "port"), ({"port": 65536}, "port"),
        ({"port": 10**30}, "port"), ({"port": "many"}, "port"), ({"port": None}, "port"),
        ({"kind": "fax"}, "kind"), ({"callingAeTitle": ""}, "callingAeTitle"),
        ({"callingAeTitle": "X" * 17}, "callingAeTitle"), ({"aetitle": "X"}, "aetitle"),
    ],
)  # fmt: skip
def test_a_malformed_field_is_named(
    local: "LocalService", change: dict[str, Any], field: str
) -> None:
    answer = local.call("POST", OURS, BODY | change)
    assert answer.status == 422, answer.data
    assert answer.json["code"] in {"invalid-destination", "invalid-request"}
    assert field in [fault["field"] for fault in answer.json["errors"]]
    assert local.client.destinations() == []


def test_all_faults_are_said_at_once(local: "LocalService") -> None:
    answer = local.call("POST", OURS, {"name": "", "aeTitle": "", "host": "", "port": 0})
    fields = [fault["field"] for fault in answer.problem(422, "invalid-destination")["errors"]]
    assert fields == ["name", "aeTitle", "host", "port"]


WEB: dict[str, Any] = {"name": "Web", "kind": "dicomweb", "url": "https://pacs.example/dicom-web"}


@pytest.mark.parametrize(
    "body",
    [
        WEB,
        WEB | {"auth": {"kind": "basic", "userName": "clara", "secret": "pacs-password"}},
        WEB | {"auth": {"kind": "bearer", "secret": "token"}},
        WEB | {"auth": {"kind": "oauth2", "tokenUrl": "https://id.example/token", "clientId": "c", "secret": "s"}},
        WEB | {"tls": {"ca": "ca.pem", "certificate": "agent.pem", "key": "agent.key"}},
        BODY | {"tls": {"checkHost": False}, "auth": {"kind": "basic", "userName": "clara"}},
        BODY | {"maxAssociations": 8, "verify": "full", "commitment": "require", "overwrite": True, "transcode": False},
    ],
)  # fmt: skip
def test_what_it_is_told_it_keeps(local: "LocalService", body: dict[str, Any]) -> None:
    assert local.call("POST", OURS, body).status == 201
    shown = local.call("GET", f"{OURS}/{body['name']}").json
    for name, value in body.items():
        if isinstance(value, dict):
            assert has(shown[name], value)
        else:
            assert shown[name] == value


def test_statuses_are_kept_in_one_form(local: "LocalService") -> None:
    added = local.call("POST", OURS, BODY | {"statuses": {"c000": "retry", "bXXX": "reject"}})
    assert added.json["statuses"] == {"C000": "retry", "Bxxx": "reject"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (WEB | {"url": None}, "url"),
        (WEB | {"url": "ftp://pacs"}, "url"),
        (WEB | {"url": "https://user:word@pacs/"}, "url"),
        (WEB | {"url": "https://pacs/?x=1"}, "url"),
        (WEB | {"host": "pacs"}, "host"),
        (WEB | {"commitment": "ask"}, "commitment"),
        (WEB | {"url": "http://pacs", "tls": {}}, "tls"),
        (WEB | {"auth": {"kind": "basic", "userName": "clara"}}, "auth.secret"),
        (WEB | {"auth": {"kind": "oauth2", "secret": "s", "clientId": "c"}}, "auth.tokenUrl"),
        (WEB | {"auth": {"kind": "magic"}}, "auth.kind"),
        (BODY | {"url": "https://pacs"}, "url"),
        (BODY | {"auth": {"kind": "oauth2", "tokenUrl": "https://x", "clientId": "c", "secret": "s"}}, "auth.kind"),
        (BODY | {"auth": {"kind": "bearer"}}, "auth.secret"),
        (BODY | {"auth": {"kind": "bearer", "secret": "../../etc/passwd"}}, "auth.secret"),
        (BODY | {"tls": {"ca": "/etc/ssl/ca.pem"}}, "tls.ca"),
        (BODY | {"tls": {"key": "agent.key"}}, "tls.certificate"),
        (BODY | {"maxAssociations": 0}, "maxAssociations"),
        (BODY | {"statuses": {"0000": "reject"}}, "statuses"),
        (BODY | {"statuses": {"C000": "delivered"}}, "statuses"),
        (BODY | {"verify": "perhaps"}, "verify"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_named(
    local: "LocalService", body: dict[str, Any], field: str
) -> None:
    answer = local.call("POST", OURS, body)
    assert answer.status == 422, answer.data
    assert field in [fault["field"] for fault in answer.json["errors"]]
    assert b"word@" not in answer.data


def test_the_original_sees_dimse_destinations_only(local: "LocalService") -> None:
    local.call("POST", OURS, WEB)
    assert local.call("GET", ORIGINAL).json == []
    local.call("GET", f"{ORIGINAL}/Web").problem(404, "destination-not-found")
    local.call("DELETE", f"{ORIGINAL}/Web").problem(404, "destination-not-found")
    assert local.call("GET", f"{OURS}/Web").status == 200


def test_a_test_is_of_the_destination_as_it_stands(local: "LocalService") -> None:
    local.call("POST", OURS, BODY)
    answer = local.call("POST", f"{OURS}/ORTHANC/test")
    assert answer.status == 200
    assert answer.json["destination"] == "Orthanc"
    assert answer.json["steps"][0]["name"] == "connect"
    (tested,) = local.tested
    assert (tested.host, tested.port) == ("pacs.example", 104)


# In the original's shape


def test_the_original_adds_lists_shows_and_removes(local: "LocalService") -> None:
    added = local.call("POST", ORIGINAL, THEIRS)
    assert (added.status, added.json) == (201, THEIRS)
    listed = local.call("GET", ORIGINAL)
    assert (listed.status, listed.json) == (200, [THEIRS])
    assert local.call("GET", f"{ORIGINAL}/mypacs").json == THEIRS
    assert has(local.call("GET", f"{OURS}/MYPACS").json, {"host": "10.20.30.2", "kind": "dicom"})
    removed = local.call("DELETE", f"{ORIGINAL}/MyPacs")
    assert (removed.status, removed.json) == (200, THEIRS)
    assert local.call("GET", ORIGINAL).json == []
    for method in ("GET", "DELETE"):
        local.call(method, f"{ORIGINAL}/MYPACS").problem(404, "destination-not-found")


@pytest.mark.parametrize(
    "change", [{"aeTitle": "X" * 17}, {"port": 0}, {"port": 65536}, {"hostIp": "a b"}, {"name": ""}]
)
def test_the_original_answers_400_to_a_bad_value(
    local: "LocalService", change: dict[str, Any]
) -> None:
    local.call("POST", ORIGINAL, THEIRS | change).problem(400, "invalid-destination")
    assert local.client.destinations() == []


def test_the_original_answers_409_to_a_name_that_is_taken(local: "LocalService") -> None:
    local.call("POST", ORIGINAL, THEIRS)
    local.call("POST", ORIGINAL, THEIRS).problem(409, "destination-exists")


def test_what_the_original_sends_beyond_that_is_passed_over(local: "LocalService") -> None:
    assert local.call("POST", ORIGINAL, THEIRS | {"extra": 1}).status == 201
