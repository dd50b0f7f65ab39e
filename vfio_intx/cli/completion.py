"""``tools/gen-completion``: bash's completion, walked off the parsers. Not a verb: it belongs to the source tree.

What is completed is static, so that a Tab costs no start of Python; only the addresses are looked up, in sysfs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from vfio_intx.cli.main import VERBS, parser_of

_SCRIPT = """\
# Completion of vfio-intx for bash, with the package bash-completion. Made by tools/gen-completion; do not edit.

_vfio_intx_functions() {
    local all
    all=$(cd /sys/bus/pci/devices 2>/dev/null && printf '%s\\n' *)
    mapfile -t COMPREPLY < <(compgen -W "$all" -- "$1")
    # The domain may be left out, where it is 0000.
    [[ ${COMPREPLY[*]} ]] ||
        mapfile -t COMPREPLY < <(compgen -W "$(sed -n 's/^0000://p' <<<"$all")" -- "$1")
    __ltrim_colon_completions "$1"
}

_vfio_intx() {
    local cur prev words cword options='' parts='' function=''
    # An address has colons, at which bash would break the word.
    _init_completion -n : || return
    if ((cword == 1)); then
        mapfile -t COMPREPLY < <(compgen -W '@VERBS@' -- "$cur")
        return
    fi
    case "${words[1]} $prev" in
@VALUES@
    esac
    case ${words[1]} in
@OPTIONS@
    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
    elif ((cword == 2)) && [[ $parts ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$parts" -- "$cur")
    elif [[ $function ]]; then
        _vfio_intx_functions "$cur"
    fi
}

complete -F _vfio_intx vfio-intx
"""
#: What follows an option of each metavar; of all others nothing can be known.
_COMPLETED_BY = {
    "FILE": "_filedir",
    "PATH": "_filedir",
    "DIR": "_filedir -d",
    "BDF": '_vfio_intx_functions "$cur"',
    "PID": "_pids",
}


def main() -> int:
    """Print the script."""
    sys.stdout.write(script())
    return 0


def script() -> str:
    """The completion, to be sourced by bash or put where bash-completion looks for it under the program's name."""
    replaced = {
        "@VERBS@": " ".join(VERBS),
        "@VALUES@": "\n".join(line for verb in VERBS for line in _values(verb)),
        "@OPTIONS@": "\n".join(_options(verb) for verb in VERBS),
    }
    text = _SCRIPT
    for mark, words in replaced.items():
        text = text.replace(mark, words)
    return text


def _actions(verb: str) -> tuple[list[argparse.Action], list[str]]:
    """All arguments of a verb and of its parts, each once, and the names of the parts."""
    queue, parts, found = [parser_of(verb)[1]], list[str](), dict[str, argparse.Action]()
    for parser in queue:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                queue += action.choices.values()
                parts += action.choices
            else:
                found.setdefault(action.option_strings[-1] if action.option_strings else action.dest, action)
    return list(found.values()), parts


def _values(verb: str) -> Iterator[str]:
    for action in _actions(verb)[0]:
        if not action.option_strings or action.nargs == 0:
            continue
        words = "" if action.choices is None else " ".join(map(str, action.choices))
        how = _COMPLETED_BY.get(str(action.metavar), ":")
        if words:
            how = f"mapfile -t COMPREPLY < <(compgen -W '{words}' -- \"$cur\")"
        yield f"        '{verb} {action.option_strings[-1]}') {how}; return ;;"


def _options(verb: str) -> str:
    actions, parts = _actions(verb)
    sets = ["options='" + " ".join(action.option_strings[-1] for action in actions if action.option_strings) + "'"]
    sets += [f"parts='{' '.join(parts)}'"] if parts else []
    sets += ["function=yes"] if any(not one.option_strings and one.metavar == "BDF" for one in actions) else []
    return f"        {verb}) {' '.join(sets)} ;;"


if __name__ == "__main__":
    sys.exit(main())
