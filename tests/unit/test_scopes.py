"""Scopes, anonymous grants, and the rules for tokens' names and ages."""

from datetime import timedelta
from pathlib import Path

import pytest

from clara_results.domain import scopes
from clara_results.domain.scopes import EVERYTHING, parse_grant, parse_scopes
from clara_results.errors import InvalidInput
from clara_results.settings import Settings, load


def test_scopes_are_read_from_text_or_a_list_and_stored_in_one_form() -> None:
    found = parse_scopes("register, agent:ClaraSCU")
    assert str(found) == "agent:clarascu,register"
    assert parse_scopes(["agent:clarascu", "register", "register"]) == found
    assert parse_scopes(str(found)) == found


@pytest.mark.parametrize(
    "text",
    ["", " , ", "write", "Register", "agent", "agent:", "agent:-x", "agent:a b", "agent:**", "*"],
)
def test_what_is_no_scope_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_scopes(text)
    assert raised.value.code == "invalid-scope"


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ("register", {"register"}),
        ("read", {"read"}),
        ("operate", {"operate", "read"}),
        ("admin", {"admin", "operate", "read", "register"}),
        ("agent:x", set()),
        ("agent:*", set()),
    ],
)
def test_what_a_scope_holds(given: str, allowed: set[str]) -> None:
    found = parse_scopes(given)
    assert {scope for scope in scopes.PLAIN if found.allow(scope)} == allowed


@pytest.mark.parametrize(
    ("given", "agent", "allowed"),
    [
        ("agent:ClaraSCU", "clarascu", True),
        ("agent:clarascu", "clarascu-2", False),
        ("agent:clarascu", "*", False),
        ("agent:*", "clarascu", True),
        ("admin", "clarascu", False),
        ("register,agent:a,agent:b", "b", True),
    ],
)
def test_acting_as_an_agent(given: str, agent: str, allowed: bool) -> None:
    assert parse_scopes(given).allow_agent(agent) is allowed


def test_some_agent_and_every_agent() -> None:
    assert not parse_scopes("admin").some_agent
    assert parse_scopes("agent:x").some_agent
    assert not parse_scopes("agent:x").every_agent
    assert parse_scopes("agent:*").every_agent
    assert EVERYTHING.every_agent
    assert all(EVERYTHING.allow(scope) for scope in scopes.PLAIN)


@pytest.mark.parametrize(
    ("network", "address", "covered"),
    [
        ("10.42.0.0/16", "10.42.7.9", True),
        ("10.42.0.0/16", "10.43.0.1", False),
        ("10.42.0.0/16", "::ffff:10.42.7.9", True),
        ("10.42.0.0/16", "::ffff:10.43.0.1", False),
        ("10.42.0.0/16", "fd00::1", False),
        ("10.42.0.7", "10.42.0.7", True),
        ("10.42.0.7", "10.42.0.8", False),
        ("fd00::/8", "fd00::1", True),
        ("fd00::/8", "10.42.7.9", False),
        ("fe80::/10", "fe80::1%eth0", True),
    ],
)
def test_a_grant_covers_its_network_alone(network: str, address: str, covered: bool) -> None:
    grant = parse_grant(f"register,agent:ClaraSCU@{network}")
    assert str(grant.scopes) == "agent:clarascu,register"
    assert grant.covers(address) is covered


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("register", "invalid-grant"),
        ("register@", "invalid-grant"),
        ("register@10.42.0.1/16", "invalid-grant"),  # bits beyond the mask: which is meant?
        ("register@10.42.0.0/33", "invalid-grant"),
        ("register@results.example", "invalid-grant"),
        ("@10.42.0.0/16", "invalid-scope"),
        ("all@10.42.0.0/16", "invalid-scope"),
    ],
)
def test_what_is_no_grant_is_refused(text: str, code: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_grant(text)
    assert raised.value.code == code


@pytest.mark.parametrize("name", ["a", "ward-3", "7", "a.b_c-d", "x" * 64])
def test_names_of_tokens(name: str) -> None:
    assert scopes.token_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "ä", "a\n", "a/b", "x" * 65])
def test_what_is_no_name_of_a_token(name: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        scopes.token_name(name)
    assert raised.value.code == "invalid-name"


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("30m", timedelta(minutes=30)),
        ("12h", timedelta(hours=12)),
        ("90d", timedelta(days=90)),
        ("999999d", timedelta(days=999_999)),
    ],
)
def test_ages_of_tokens(text: str, age: timedelta) -> None:
    assert scopes.token_age(text) == age


@pytest.mark.parametrize("text", ["", "90", "d", "0d", "-1d", "1.5h", "90 d", "1w", "1000000d"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        scopes.token_age(text)
    assert raised.value.code == "invalid-age"


ONE, OTHER = "register,agent:clarascu@10.42.0.0/16", "read@127.0.0.1"


def test_grants_come_as_flags_as_one_variable_or_as_a_list_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "clara.toml").write_text(f"anonymous = {[ONE, OTHER]}")
    assert load({}, {}, tmp_path / "clara.toml").settings.anonymous == (ONE, OTHER)
    by_flag = load({"anonymous": [ONE, OTHER]}, {}).settings
    by_variable = load({}, {"CLARA_RESULTS_ANONYMOUS": f"{ONE}; {OTHER};"}).settings
    assert by_flag.anonymous == by_variable.anonymous == (ONE, OTHER)
    assert [str(grant.network) for grant in by_flag.grants] == ["10.42.0.0/16", "127.0.0.1/32"]
    assert Settings().grants == ()


@pytest.mark.parametrize("value", [7, [7], "register"])
def test_what_is_no_list_of_grants_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput, match="anonymous"):
        load({"anonymous": value}, {})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104  (a value to judge, not to bind)
        ("::", False),
        ("10.0.0.7", False),
        ("results.example", False),
    ],
)
def test_which_addresses_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert Settings(host=host).loopback is loopback
