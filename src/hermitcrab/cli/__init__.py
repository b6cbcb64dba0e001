"""Every verb: parse, call, print; no logic. Heavy libraries are imported by what is called, so `--help` answers at once.

Standard output has the answer (one JSON object with --json); progress and messages go to standard error.
Exit status: 0 done, 1 a failed run or check, 2 bad usage or recipe, 3 a claim contradicted by evidence.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from hermitcrab import __version__
from hermitcrab.cli import data, judging, making, using
from hermitcrab.errors import HermitcrabError, UsageError, did_you_mean

VERBS = {**making.VERBS, **data.VERBS, **judging.VERBS, **using.VERBS}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="crab", description="From an open base model and your data to an evaluated, packaged model with a signed record.",
                  epilog="example: crab run recipes/demo.yaml")  # fmt: skip
    top.add_argument("--version", action="version", version=f"hermitcrab {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    for name, (help, _, example, arguments) in VERBS.items():
        verb = verbs.add_parser(name, help=help, description=help, epilog=f"example: {example}")
        for names, more in arguments:
            verb.add_argument(*names, **more)
        verb.add_argument("--json", action="store_true", help="one JSON object on standard output")
        verb.add_argument("--quiet", action="store_true", help="no progress")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        first = next((a for a in arguments if not a.startswith("-")), None)
        if first is not None and first not in VERBS:
            raise UsageError(f"crab has no verb `{first}`{did_you_mean(first, VERBS)}")
        args, left = parser().parse_known_args(arguments)
        for word in left:  # overrides may stand behind options
            if word.startswith("-") or "=" not in word or not hasattr(args, "overrides"):
                raise UsageError(f"unrecognized arguments: {word} (see `crab {args.verb} --help`)")
            args.overrides.append(word)
        if args.verb is None:
            parser().print_help()
            return 2
        if args.quiet:
            from hermitcrab.progress import set_quiet

            set_quiet(True)
        value, text, status = VERBS[args.verb][1](args)
        print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) if args.json else text(), flush=True)
        return status if isinstance(status, int) else status()
    except HermitcrabError as error:
        print(f"crab: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            print(f"crab: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncrab: stopped; the same command continues where it was", file=sys.stderr)
        return 1
