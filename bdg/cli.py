"""The command line `bdg <verb>`: finds the verb and hands over; imports nothing heavy until a verb is named."""

import difflib
import os
import sys

from bdg import __version__
from bdg.commands.errors import report
from bdg.commands.verbs import VERBS
from bdg.orphans import end_with_rank_0
from bdg.signals import remember

TRAINS = ("train", "pipeline")
"""Verbs whose process may be told to leave while it still imports torch."""
HELP = """\
bdg <verb> [words] [key=value ...]

{verbs}

bdg <verb> --help        config groups, keys and examples of a verb
bdg <verb> --cfg job     the config it would run with; also --resolve, -cn, --config-dir, --info, -m
bdg -sc install=bash     shell completion: eval "$(bdg -sc install=bash)"; fish: bdg -sc install=fish | source
bdg --version

Config files are looked for in --config-dir, ./conf, $BDG_CONFIG_DIR and the package, in this order.
A path with '=' in it needs ./ or / in front. BDG_TRACEBACK=1 shows where an error arose."""


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit status: 0 done, 1 failed, 2 not understood, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    os.umask(os.umask(0o022) | 0o002)  # what we write is nobody's else to change
    first, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if first in ("-h", "--help"):
        width = max(map(len, VERBS))
        print(HELP.format(verbs="\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())))
        return 0
    if first == "--version":
        print(f"bdg {__version__}")
        return 0
    try:
        if first in ("-sc", "--shell-completion"):
            from bdg.commands.completion import complete  # Hydra is imported from here on, torch only by the verb

            return complete(rest)
        if first not in VERBS:
            print(f"bdg: error: {_not_a_verb(first)}", file=sys.stderr)
            return 2
        if argv is None and first in TRAINS:
            end_with_rank_0()
            remember()
        from bdg.commands.invocation import invoke

        return invoke(VERBS[first], rest)
    except KeyboardInterrupt:
        print(f"bdg {first}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        report(f"bdg {first}", error)
        return 1


def _not_a_verb(word: str) -> str:
    if "=" in word or word.startswith("-"):
        return f"the verb comes first, got '{word}': type bdg VERB {word}, where VERB is one of {', '.join(VERBS)}"
    close = difflib.get_close_matches(word, VERBS, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(VERBS)}"
    return f"no verb '{word}': {hint} (bdg --help)"
