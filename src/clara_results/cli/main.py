"""Where every command begins."""

import sys


def main() -> int:
    """Run a command; return its exit code (see ``errors`` for what the codes mean)."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["register"]:
        # The last step of a pipeline: it starts without what the other commands need.
        from clara_results.operator.command import main as register

        return register(arguments[1:])
    try:
        from clara_results.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.stderr.write(
            "error: only `clara-results register` is installed; for the other commands install "
            "clara-results[cli], [dicom], [service] or [all]\n"
        )
        return 2
    return run(arguments)
