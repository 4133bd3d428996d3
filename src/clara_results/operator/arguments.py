"""The flags of ``register``, and what its help says."""

import argparse
import math
from collections.abc import Sequence
from typing import NoReturn

from clara_results.errors import InvalidInput

DEFAULT_WAIT = 3600.0
"""Seconds for which ``--wait`` waits when it is not told."""

_DESCRIPTION = """\
Register the files of this pipeline step's inputs with the Results Service, which has them delivered.
Every regular file of every input is registered in one request, as one task for each element of --data.
Run again with the same results, it registers nothing twice; with changed results, the new ones replace
what is not yet delivered of the old ones."""

_EPILOG = """\
examples:
  %(prog)s --agent ClaraSCU --data '["Orthanc","DCM4CHEE"]'
  %(prog)s --agent ClaraSCU --data '["Orthanc"]' --input-uri input=liver-seg/output
  %(prog)s --agent ClaraSCU --input ct=/data/ct --input seg=/data/seg --dry-run
  %(prog)s --agent ClaraSCU --data '["Orthanc"]' --wait=600 --json

environment (a flag goes before it):
  NVIDIA_CLARA_INPUTPATHS       name:/path, several joined by ';'
  NVIDIA_CLARA_JOBID            --job
  NVIDIA_CLARA_PIPELINEID       --pipeline
  NVIDIA_CLARA_PAYLOADID        --payload
  NVIDIA_CLARA_OPERATORNAME     --operator
  CLARA_RESULTSSERVICE_SERVICE_HOST, CLARA_RESULTSSERVICE_SERVICE_PORT
                                where the service is, unless --service or CLARA_RESULTS_SERVICE says it
  CLARA_RESULTS_SERVICE, CLARA_RESULTS_PAYLOADS, CLARA_RESULTS_TIMEOUT, CLARA_RESULTS_CONFIG
                                the flags of these names
  CLARA_RESULTS_TOKEN_FILE, CLARA_RESULTS_TOKEN
                                bearer token for the service
  CLARA_RESULTS_INPUT_URIS      name=prefix, several joined by ';' (--input-uri)

exit codes:
  0  registered (with --wait: and delivered)
  1  a fault of this program
  2  something given is wrong or missing; nothing was done
  3  no file found in the inputs (0 with --allow-empty)
  4  the service did not answer, or answered 5xx or 429, for --timeout seconds
  5  an input can't be read, or changed while it was read
  6  --wait: a task Failed or was Canceled, or time ran out
  7  the service refused, or newer results have superseded these
  128+n  ended by signal n (130: SIGINT, 143: SIGTERM)"""


_CHECKED_BY_US = ("--agent", "--data")
"""Flags whose value may begin with a hyphen: the message about it is ours, for it shows the rule."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidInput(f"{message} (see {self.prog} --help)", code="usage")


def parse(arguments: Sequence[str], program: str) -> argparse.Namespace:
    """Read a command line.

    Args:
        arguments: Without the program's name.
        program: How the command is called.

    Raises:
        InvalidInput: It is not one.
        SystemExit: It asked for help.
    """
    joined: list[str] = []
    for argument in arguments:
        value = argument.startswith("-") and not argument.startswith("--")
        if value and joined and joined[-1] in _CHECKED_BY_US:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return _parser(program).parse_args(joined)


def _parser(program: str) -> argparse.ArgumentParser:
    made = _Parser(
        prog=program,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = made.add_argument_group("what is registered, and for whom")
    what.add_argument("--agent", metavar="NAME", help="agent that is to take the results up")
    what.add_argument(
        "--data", metavar="JSON", help="JSON array; each element makes one task (default: one task)"
    )
    what.add_argument(
        "--input",
        metavar="[NAME=]PATH",
        action="append",
        help="folder to scan; repeatable (default: NVIDIA_CLARA_INPUTPATHS, else /input)",
    )
    what.add_argument(
        "--allow-empty", action="store_true", help="no file found: exit 0, and register nothing"
    )
    where = made.add_argument_group("where the files are")
    where.add_argument(
        "--payloads",
        metavar="DIR",
        help="folder of the payloads: an input in DIR/PAYLOAD is registered where it is",
    )
    where.add_argument(
        "--input-uri",
        metavar="NAME=PREFIX",
        action="append",
        help="the input NAME is the folder PREFIX of the payload ('.': all of it); repeatable. "
        "An input of which nothing is known is uploaded",
    )
    who = made.add_argument_group("who registers")
    who.add_argument("--job", metavar="ID", help="the platform's job")
    who.add_argument("--pipeline", metavar="ID", help="the platform's pipeline")
    who.add_argument("--payload", metavar="ID", help="the payload that the files belong to")
    who.add_argument("--operator", metavar="NAME", help="this step's name in the pipeline")
    service = made.add_argument_group("the service")
    service.add_argument("--service", metavar="URL", help="URL of the Results Service")
    service.add_argument("--token-file", metavar="FILE", help="file that holds the bearer token")
    service.add_argument(
        "--timeout", metavar="S", help="seconds to try while the service is away (default: 120)"
    )
    service.add_argument("--config", metavar="FILE", help="TOML file of settings")
    how = made.add_argument_group("how")
    how.add_argument(
        "--dry-run",
        action="store_true",
        help="show what would be registered; send nothing",
    )
    how.add_argument(
        "--wait",
        metavar="S",
        nargs="?",
        type=_seconds,
        const=DEFAULT_WAIT,
        help="follow the tasks to their end, for S seconds at most (default: 3600)",
    )
    how.add_argument("--json", action="store_true", help="one JSON object on stdout, errors too")
    how.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return made


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds
