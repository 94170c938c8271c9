"""What the two commands share: how they end, how they log, how they print lists."""

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NoReturn

import click
import typer

from core.exceptions import ConfigurationError, FederatedLearningError
from core.jsontext import as_json

_INTERRUPTED = 130


def run(app: typer.Typer) -> NoReturn:
    """Run a command line and end the process with the exit code that its errors have.

    0 done; 1 failed; 2 could not connect or log in; 3 timed out; 4 bad configuration or arguments;
    130 interrupted.
    """
    sys.exit(_exit_code(app))


def _exit_code(app: typer.Typer) -> int:
    try:
        result = app(standalone_mode=False)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.ClickException as exc:
        exc.show()
        return ConfigurationError.exit_code
    except FederatedLearningError as exc:
        _complain(str(exc))
        return exc.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        _complain("interrupted")
        return _INTERRUPTED
    except Exception as exc:  # noqa: BLE001 - the last line: a person gets a word, the log the rest
        from loguru import logger  # noqa: PLC0415 - only when it is needed

        logger.opt(exception=exc).debug("unexpected error")
        _complain(f"unexpected {type(exc).__name__}: {exc}; again with --debug for more")
        return FederatedLearningError.exit_code
    return int(result or 0)


def _complain(message: str) -> None:
    sys.stderr.write(f"error: {message}\n")


Debug = Annotated[bool, typer.Option("--debug", help="Log everything, with tracebacks.")]


def configure_logging(*, debug: bool) -> None:
    """Log to standard error: INFO and above, or everything with `debug`, one line each."""
    from loguru import logger  # noqa: PLC0415 - `--help` does without

    logger.remove()
    logger.add(
        sys.stderr,
        level="DEBUG" if debug else "INFO",
        format="{time:YYYY-MM-DD HH:mm:ss.SSS} {level: <7} {message}",
        backtrace=debug,
        diagnose=False,  # it would print the values of variables: rows, passwords
    )


def echo_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print aligned columns that a person and `awk` can both read."""
    if not rows:
        typer.echo(empty)
        return
    cells = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())


def echo_findings(rows: Sequence[Mapping[str, str]], *, as_json: bool) -> None:
    """Print what a check-up found; exit code 1 when something failed.

    Args:
        rows: Of `core.checkup.as_rows`.
        as_json: As JSON and not for a person.
    """
    if as_json:
        echo_json(list(rows))
    else:
        width = max(len(row["check"]) for row in rows)
        indent = "\n" + " " * (width + 8)
        for row in rows:
            lines = [*row["found"].splitlines(), *([f"> {row['advice']}"] if row["advice"] else [])]
            typer.echo(f"{row['outcome']:<4}  {row['check']:<{width}}  {indent.join(lines)}")
    raise typer.Exit(int(any(row["outcome"] == "FAIL" for row in rows)))


def echo_line(value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Print `value` as JSON on one line, as the last of several."""
    typer.echo(as_json(value))


def echo_json(value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Print `value` as JSON."""
    typer.echo(as_json(value, indent=2))
