"""Settings: four sources and their order, checks, and what must never be shown."""

from pathlib import Path
from typing import Any

import pytest

from clara_results import settings
from clara_results.errors import SettingsInvalid
from clara_results.settings import FIELDS, Settings, load, variable


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "clara.toml"
    path.write_text(text)
    return path


def faults_of(
    flags: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    config: Path | None = None,
) -> dict[str, str]:
    with pytest.raises(SettingsInvalid) as raised:
        load(flags or {}, environment or {}, config)
    assert raised.value.code == "invalid-settings"
    assert raised.value.exit_code == 2
    assert all(fault.message in str(raised.value) for fault in raised.value.errors)
    return {fault.field: fault.message for fault in raised.value.errors}


def test_defaults_are_those_of_the_documentation() -> None:
    found = load({}, {}).settings
    assert found.retry_delay == 30
    assert found.max_retries == 3
    assert found.give_up == 259_200
    assert found.lease == 60
    assert (found.host, found.port) == ("127.0.0.1", 8088)
    assert found.service_url == "http://127.0.0.1:8088"
    assert found.data.is_absolute()
    assert found.database_url == f"sqlite:///{found.data}/clara-results.db"
    assert found.payload_folder == found.data / "payloads"
    assert found.ae_title == "ClaraSCU"


def test_flag_goes_before_environment_before_file_before_default(tmp_path: Path) -> None:
    config = toml(tmp_path, "max_retries = 5\nlease = 70\nretry-delay = 2\n")
    environment = {"CLARA_RESULTS_MAX_RETRIES": "6", "CLARA_RESULTS_LEASE": "80"}
    loaded = load({"max_retries": 7, "lease": None}, environment, config)
    found = loaded.settings
    assert (found.max_retries, found.lease, found.retry_delay, found.parallel) == (7, 80, 2.0, 4)
    assert loaded.sources["max_retries"] == "flag"
    assert loaded.sources["lease"] == "environment CLARA_RESULTS_LEASE"
    assert loaded.sources["retry_delay"] == f"file {config}"
    assert loaded.sources["parallel"] == "default"
    assert set(loaded.sources) == set(FIELDS)


def test_the_environment_may_name_the_file_and_the_flag_names_another(tmp_path: Path) -> None:
    one = toml(tmp_path, "lease = 70")
    other = tmp_path / "other.toml"
    other.write_text("lease = 90")
    environment = {"CLARA_RESULTS_CONFIG": str(one)}
    assert load({}, environment).settings.lease == 70
    assert load({}, environment, other).settings.lease == 90


def test_an_empty_variable_is_as_good_as_none() -> None:
    empty = dict.fromkeys([variable(name) for name in FIELDS] + ["CLARA_RESULTS_CONFIG"], "")
    assert load({}, empty).settings == load({}, {}).settings


def test_every_setting_has_one_variable_and_help() -> None:
    assert variable("retry_delay") == "CLARA_RESULTS_RETRY_DELAY"
    assert all(field.metadata["help"] for field in FIELDS.values())


def test_the_platforms_variables_name_the_service_unless_ours_do() -> None:
    platform = {settings.SERVICE_HOST: "10.0.0.7", settings.SERVICE_PORT: "8088"}
    loaded = load({}, platform)
    assert loaded.settings.service_url == "http://10.0.0.7:8088"
    assert settings.SERVICE_HOST in loaded.sources["service"]
    v6 = platform | {settings.SERVICE_HOST: "fd00::7"}
    assert load({}, v6).settings.service_url == "http://[fd00::7]:8088"
    ours = platform | {"CLARA_RESULTS_SERVICE": "https://results.example/base/"}
    assert load({}, ours).settings.service_url == "https://results.example/base"
    half = {settings.SERVICE_HOST: "10.0.0.7"}
    assert load({}, half).settings.service_url == "http://127.0.0.1:8088"


@pytest.mark.parametrize(
    "name", ["clara-results", "clara-results-payloads", "clara-results-service"]
)
def test_what_kubernetes_injects_for_a_service_is_passed_over_with_a_note(name: str) -> None:
    prefix = name.upper().replace("-", "_")
    injected = {
        f"{prefix}_SERVICE_HOST": "10.0.0.1",
        f"{prefix}_SERVICE_PORT": "8088",
        f"{prefix}_SERVICE_PORT_HTTP": "8088",
        f"{prefix}_PORT": "tcp://10.0.0.1:8088",
        f"{prefix}_PORT_8088_TCP": "tcp://10.0.0.1:8088",
        f"{prefix}_PORT_8088_TCP_PROTO": "tcp",
        f"{prefix}_PORT_8088_TCP_PORT": "8088",
        f"{prefix}_PORT_8088_TCP_ADDR": "10.0.0.1",
    }
    loaded = load({}, injected)
    assert loaded.settings == load({}, {}).settings
    assert len(loaded.notes) == len(injected)
    assert all("passed over" in note for note in loaded.notes)


def test_a_misspelt_variable_is_noted_with_what_was_meant() -> None:
    loaded = load({}, {"CLARA_RESULTS_LEASES": "5", "CLARA_RESULTS_INPUT_URIS": "a=b"})
    assert len(loaded.notes) == 1
    assert "did you mean CLARA_RESULTS_LEASE?" in loaded.notes[0]


def test_all_that_is_wrong_is_said_at_once_with_where_it_came_from(tmp_path: Path) -> None:
    config = toml(tmp_path, 'max_retrys = 1\nport = "many"\ninsecure = "maybe"\n')
    environment = {"CLARA_RESULTS_LEASE": "0", "CLARA_RESULTS_SERVICE": "results:8088"}
    faults = faults_of({"log_level": "loud"}, environment, config)
    assert set(faults) == {"max_retrys", "port", "insecure", "lease", "service", "log_level"}
    assert "did you mean max_retries?" in faults["max_retrys"]
    assert f"from file {config}" in faults["port"]
    assert "'many' is not a whole number" in faults["port"]
    assert "environment CLARA_RESULTS_LEASE" in faults["lease"]
    assert "flag" in faults["log_level"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "-1"), ("port", "65536"), ("port", "80.5"), ("port", "inf"), ("port", "1" * 5000),
        ("max_retries", "-1"), ("max_retries", "1e3"), ("lease", "0"), ("parallel", "0"),
        ("lease", "86401"), ("max_retries", "1001"),
        ("retry_delay", "-0.1"), ("retry_delay", "nan"), ("retry_delay", "inf"),
        ("retry_delay", "1e300"), ("retry_delay_max", "1e14"), ("give_up", "1e300"),
        ("give_up", "soon"), ("timeout", "1e300"), ("dimse_timeout", "0"),
        ("service", "ftp://x"), ("service", "http://"), ("service", "http://x:99999"),
        ("service", "http://x?y=1"), ("service", "http://x#y"), ("service", "http://[::1"),
        ("database", "mysql://user:hunter2@db/x"), ("database", "sqlite://"),
        ("database", "clara.db"), ("ae_title", "X" * 17), ("ae_title", "9A"), ("ae_title", "A B"),
        ("log_format", "xml"), ("insecure", "2"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, value: str) -> None:
    faults = faults_of(environment={variable(name): value})
    assert list(faults) == [name]
    assert "hunter2" not in faults[name]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("data = 5", "data"), ("payloads = 1.5", "payloads"), ("host = true", "host"),
        ("port = inf", "port"), ("port = nan", "port"), ("port = 80.5", "port"),
        ("port = true", "port"), ("port = [1]", "port"), ("host = {a = 1}", "host"),
        ("host = 5", "host"), ("retry_delay = 1979-05-27", "retry_delay"),
        ("[port]\nx = 1", "port"),
    ],
)  # fmt: skip
def test_values_of_another_type_in_the_file_are_refused(
    tmp_path: Path, line: str, name: str
) -> None:
    assert list(faults_of(config=toml(tmp_path, line))) == [name]


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("port = 0", "port", 0), ("port = 9000.0", "port", 9000), ("retry_delay = 5", "retry_delay", 5.0),
        ("insecure = true", "insecure", True), ('insecure = "no"', "insecure", False),
        ('data = "/var/x"', "data", Path("/var/x")), ('lease = "61"', "lease", 61),
    ],
)  # fmt: skip
def test_values_in_the_file_are_taken_in_their_type(
    tmp_path: Path, line: str, name: str, value: Any
) -> None:
    found = getattr(load({}, {}, toml(tmp_path, line)).settings, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["port = ", "port = 1\nport = 2", "\x00"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, text: str) -> None:
    config = toml(tmp_path, text)
    faults = faults_of({"port": -1}, config=config)
    assert set(faults) == {"config", "port"}  # and the rest is checked all the same
    assert str(config) in faults["config"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "no.toml" in faults_of(config=tmp_path / "no.toml")["config"]
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert "binary.toml" in faults_of(environment={"CLARA_RESULTS_CONFIG": str(binary)})["config"]


def test_a_path_may_begin_with_the_home_folder() -> None:
    assert load({}, {"CLARA_RESULTS_DATA": "~/x"}).settings.data == Path.home() / "x"


def test_the_token_comes_from_the_setting_or_its_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  s3cret\n")
    assert load({"token_file": path}, {}).settings.bearer_token() == "s3cret"
    assert load({"token_file": path, "token": "other"}, {}).settings.bearer_token() == "other"
    assert load({}, {}).settings.bearer_token() is None


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff"])
def test_a_token_file_without_a_token_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsInvalid, match="token_file"):
        Settings(token_file=path).bearer_token()


@pytest.mark.parametrize("line", ['token = ["hunter2"]', 'token = {a = "hunter2"}'])
def test_a_wrong_token_is_not_shown(tmp_path: Path, line: str) -> None:
    assert "hunter2" not in faults_of(config=toml(tmp_path, line))["token"]


def test_a_token_is_not_shown_with_the_settings() -> None:
    assert "hunter2" not in repr(load({"token": "hunter2"}, {}))


def test_a_password_in_the_services_address_is_refused_and_not_shown() -> None:
    faults = faults_of(environment={"CLARA_RESULTS_SERVICE": "http://user:hunter2@results:8088"})
    assert "hunter2" not in faults["service"]
