"""Who registers what, from where: flags, environment and settings."""

from pathlib import Path

import pytest

from clara_results.errors import ClaraResultsError, InvalidInput, UnsafeUri
from clara_results.operator.arguments import parse
from clara_results.operator.request import Request, resolve
from clara_results.operator.scan import Input

WHO = {
    "NVIDIA_CLARA_JOBID": "job1",
    "NVIDIA_CLARA_PIPELINEID": "pipeline1",
    "NVIDIA_CLARA_PAYLOADID": "payload1",
    "NVIDIA_CLARA_OPERATORNAME": "register-op",
    "CLARA_RESULTSSERVICE_SERVICE_HOST": "10.0.0.7",
    "CLARA_RESULTSSERVICE_SERVICE_PORT": "8088",
}


def asked(*flags: str, **environment: str) -> Request:
    return resolve(parse(["--agent", "ClaraSCU", *flags], "register.py"), WHO | environment)


def refused(*flags: str, **environment: str) -> ClaraResultsError:
    with pytest.raises(InvalidInput) as raised:
        asked(*flags, **environment)
    assert raised.value.exit_code == 2
    return raised.value


def test_everything_from_the_platform() -> None:
    assert asked() == Request(
        agent="clarascu",
        data=None,
        job_id="job1",
        pipeline_id="pipeline1",
        payload_id="payload1",
        operator="register-op",
        inputs=(Input("input", "/input"),),
        service="http://10.0.0.7:8088",
        token=None,
        timeout=120.0,
    )


def test_flags_go_before_the_environment(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    request = asked(
        *("--job", "j", "--pipeline", "p", "--payload", "q", "--operator", "o"),
        *("--service", "http://s:1/", "--timeout", "5", "--token-file", str(token)),
        *("--input", "/data/ct", "--input", "Seg=/x=y/z", "--data", '["a"]'),
        NVIDIA_CLARA_INPUTPATHS="other:/other",
        CLARA_RESULTS_TIMEOUT="7",
    )
    assert request == Request(
        agent="clarascu",
        data=["a"],
        job_id="j",
        pipeline_id="p",
        payload_id="q",
        operator="o",
        inputs=(Input("ct", "/data/ct"), Input("Seg", "/x=y/z")),
        service="http://s:1",
        token="secret",
        timeout=5.0,
    )


def test_settings_of_a_file(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('timeout = 3\nservice = "http://file:1"\n')
    request = asked("--config", str(config))
    assert (request.timeout, request.service) == (3.0, "http://10.0.0.7:8088")


@pytest.mark.parametrize(
    ("variable", "inputs"),
    [
        ("input:/input", [Input("input", "/input")]),
        (" ct:/a ; seg:/b/c; ;", [Input("ct", "/a"), Input("seg", "/b/c")]),
        ("a:/x:y", [Input("a", "/x:y")]),
        ("", [Input("input", "/input")]),
        (" ; ", [Input("input", "/input")]),
    ],
)
def test_mapped_inputs(variable: str, inputs: list[Input]) -> None:
    assert list(asked(NVIDIA_CLARA_INPUTPATHS=variable).inputs) == inputs


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("input", "each entry is NAME:/PATH"),
        ("/input", "each entry is NAME:/PATH"),
        ("input:relative", "each entry is NAME:/PATH"),
        (":/input", "is not a name"),
        ("a b:/input", "is not a name"),
        ("a:/x;A:/y", "two inputs are named A"),
    ],
)
def test_mapped_inputs_that_are_wrong(variable: str, message: str) -> None:
    assert message in str(refused(NVIDIA_CLARA_INPUTPATHS=variable))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["/data/ct.v2"], "name it: --input NAME=PATH"),
        (["/"], "name it: --input NAME=PATH"),
        (["a="], "has no path"),
        (["=/x"], "is not a name"),
        (["/x/a", "/y/A"], "two inputs are named A"),
        (["a=/x", "a=/y"], "two inputs are named a"),
        (["a" * 256 + "=/x"], "1 to 255"),
        (["ä=/x"], "is not a name"),
    ],
)
def test_input_flags_that_are_wrong(flags: list[str], message: str) -> None:
    assert message in str(refused(*(part for flag in flags for part in ("--input", flag))))


def test_prefixes_of_flags_and_environment() -> None:
    inputs = ["--input", "a=/a", "--input", "B=/b", "--input", "c=/c"]
    given = {"CLARA_RESULTS_INPUT_URIS": "a=out/a ; b=. ;"}
    assert asked(*inputs, **given).inputs == (
        Input("a", "/a", "out/a"),
        Input("B", "/b", ""),
        Input("c", "/c", None),
    )
    assert asked(*inputs, "--input-uri", "c=", "--input-uri", "a=x/", **given).inputs == (
        Input("a", "/a", "x"),
        Input("B", "/b", None),
        Input("c", "/c", ""),
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["input"], "each entry is NAME=PREFIX"),
        (["=x"], "each entry is NAME=PREFIX"),
        (["inputs=x"], "mapped: input"),
        (["input=x", "INPUT=y"], "given twice"),
    ],
)
def test_prefixes_that_are_wrong(flags: list[str], message: str) -> None:
    assert message in str(refused(*(part for flag in flags for part in ("--input-uri", flag))))


@pytest.mark.parametrize("prefix", ["/", "/abs", "../x", "a/../b", "a//b", "./a", "a\\b", "c:/x"])
def test_prefixes_that_would_leave_the_payload(prefix: str) -> None:
    assert isinstance(refused("--input-uri", f"input={prefix}"), UnsafeUri)


def test_an_input_in_the_payloads_folder_is_in_place(tmp_path: Path) -> None:
    payload = tmp_path / "payloads" / "payload1"
    for folder in ("payload1/out/seg", "payload2", "payload10/x"):
        (tmp_path / "payloads" / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(payload / "out")
    (tmp_path / "payloads-link").symlink_to("payloads")
    flags = [
        *("--payloads", str(tmp_path / "payloads-link"), "--input-uri", "given=elsewhere"),
        *("--input", f"all={payload}", "--input", f"link={tmp_path / 'link'}"),
        *("--input", f"given={payload / 'out' / 'seg'}"),
        *("--input", f"other={payload.parent / 'payload2'}"),
        *("--input", f"longer={payload.parent / 'payload10' / 'x'}"),
        *("--input", f"above={payload.parent}"),
    ]
    assert {each.name: each.prefix for each in asked(*flags).inputs} == {
        "all": "",
        "link": "out",
        "given": "elsewhere",
        "other": None,
        "longer": None,
        "above": None,
    }


def test_what_is_missing_is_named_all_at_once() -> None:
    with pytest.raises(InvalidInput) as raised:
        resolve(parse([], "register.py"), {"NVIDIA_CLARA_JOBID": " "})
    message = str(raised.value)
    assert raised.value.code == "missing"
    for name in (
        *("--agent", "--job", "--pipeline", "--payload", "--operator", "--service"),
        *(WHO.keys() | {"CLARA_RESULTS_SERVICE"}),
    ):
        assert name in message
    assert [fault.field for fault in raised.value.errors] == [
        "job", "pipeline", "payload", "operator", "service", "agent",
    ]  # fmt: skip


def test_a_dry_run_needs_no_service() -> None:
    environment = {name: value for name, value in WHO.items() if "SERVICE" not in name}
    flags = parse(["--agent", "a", "--dry-run"], "register.py")
    assert resolve(flags, environment).service is None


def test_what_is_wrong_is_said_all_at_once() -> None:
    error = refused(
        *("--agent", "-x", "--payload", ".p", "--operator", "a/b", "--data", "{}"),
        *("--input", "/", "--timeout", "soon", "--job", ""),
        NVIDIA_CLARA_JOBID="",
    )
    for part in ("job: --job", "-x", ".p", "a/b", "not an array", "--input '/'", "'soon'"):
        assert part in str(error)
    assert {"job", "timeout", "invalid-data", "invalid-agent-name"} <= {
        fault.field for fault in error.errors
    }


@pytest.mark.parametrize("agent", ["", "1a", "a-", "-a", "a_b", "a b", "ä", "a" * 256])
def test_agent_names_that_break_the_rule(agent: str) -> None:
    error = refused("--agent", agent)
    assert error.code == "invalid-agent-name"
    assert "letters, digits and hyphens; begins with a letter" in str(error)


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    assert "can't be read" in str(refused("--token-file", str(tmp_path / "none")))


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon"])
def test_wait_takes_seconds(seconds: str) -> None:
    assert "is not a number of seconds" in str(refused(f"--wait={seconds}"))


def test_unknown_flags_and_abbreviations_are_refused() -> None:
    assert refused("--nonsense").code == "usage"
    assert refused("--dry").code == "usage"
