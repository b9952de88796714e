"""Shell completion: Hydra's own, for a command line that has a verb in front of the overrides."""

import contextlib
import os
import sys
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser

from bdg.commands.compose import open_hydra
from bdg.commands.invocation import is_bare
from bdg.commands.verbs import VERBS


def complete(arguments: Sequence[str]) -> int:
    """`install=SHELL`, `uninstall=SHELL`, or `query=SHELL`, which the shell asks with its line in $COMP_LINE."""
    action, _, shell = "".join(arguments).partition("=")
    if action != "query":
        sys.argv[0] = "bdg"  # what Hydra's script is to complete, also where it was asked for by `python -m bdg`
        open_hydra().shell_completion(None, list(arguments))
        return 0
    words = os.environ["COMP_LINE"].split()[1:]
    at_new_word = os.environ["COMP_LINE"].endswith(" ")
    if not words or (len(words) == 1 and not at_new_word):
        matches = [verb for verb in VERBS if verb.startswith("".join(words))]
        print(("\n" if shell == "fish" else " ").join(matches))
    elif words[0] in VERBS:
        # a line that Hydra cannot read has no completions; what is wrong is said when it is run
        with (
            contextlib.suppress(Exception, SystemExit),
            open(os.devnull, "w") as void,
            contextlib.redirect_stderr(void),
        ):
            _query(words[0], words[1:], at_new_word, shell)
    return 0


def _query(verb: str, words: list[str], at_new_word: bool, shell: str) -> None:
    """Hydra's answer for the line without its verb and without the bare words, which it would not understand."""
    flags = get_args_parser().parse_intermixed_args(words)
    partial = "" if at_new_word else words.pop()
    if partial.startswith((".", "/", "~/", "-")):
        return  # a path: the shell completes it by itself
    bare = [word for word in flags.overrides if is_bare(word)]
    os.environ["COMP_LINE"] = " ".join(["bdg", *(word for word in words if word not in bare), partial])
    open_hydra(flags.config_dir).shell_completion(flags.config_name or VERBS[verb].file, [f"query={shell}"])
