"""The command line as a whole: what is called in a wrong way is told so, in words."""

import subprocess
import sys

import pytest

from clara_results.cli.app import run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "No such command 'nope'"),
        (["tasks", "--nope"], "No such option: --nope"),
        (["tasks", "list", "--limit", "many"], "'--limit'"),
        (["tasks", "show"], "Missing argument"),
    ],
)
def test_a_wrong_call_is_told_what_is_wrong(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert said in capsys.readouterr().err


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in ("up", "serve", "register", "agent", "destinations", "tasks", "pipeline", "backup"):  # fmt: skip
        assert f" {command} " in shown


def test_an_error_of_ours_gives_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pipeline", "check", "/no/such/file.yaml"]) == 5
    assert "/no/such/file.yaml can't be read" in capsys.readouterr().err


def test_a_command_does_not_wait_for_what_others_import() -> None:
    script = (
        "import sys; from clara_results.cli.app import run; assert run(['config', '--help']) == 0; "
        "assert 'clara_results.cli.config' in sys.modules; assert 'clara_results.agents' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
