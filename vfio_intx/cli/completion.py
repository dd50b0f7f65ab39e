"""``tools/gen-completion``: bash's completion, walked off the parsers. Not a verb: it belongs to the source tree.

What is completed is static, so that a Tab costs no start of Python; only the addresses are looked up, in sysfs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from vfio_intx.chain.scheme import Scheme
from vfio_intx.cli.main import VERBS, parser_of
from vfio_intx.diagnose.rules import RULES
from vfio_intx.lab.scenario import names as scenarios
from vfio_intx.qemu.intx_state import SWITCHABLE
from vfio_intx.wiring.attach import CHOICES as ATTACHABLE

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
    local cur prev words cword command at=2 nth=0 index wanted options='' valued='' rest='' arguments=()
    # An address has colons, at which bash would break the word.
    _init_completion -n : || return
    if ((cword == 1)); then
        mapfile -t COMPREPLY < <(compgen -W '@VERBS@' -- "$cur")
        return
    fi
    command=${words[1]}
    if [[ $command == @GROUPS@ ]] && ((cword > 2)); then
        command+=" ${words[2]}" at=3
    fi
    case "$command $prev" in
@VALUES@
    esac
    case $command in
@OPTIONS@
    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
        return
    fi
    for ((index = at; index < cword; index++)); do
        if [[ " $valued " == *" ${words[index]} "* ]]; then
            index=$((index + 1))
        elif [[ ${words[index]} != -* ]]; then
            nth=$((nth + 1))
        fi
    done
    wanted=${arguments[nth]-$rest}
    if [[ $wanted == BDF ]]; then
        _vfio_intx_functions "$cur"
    else
        mapfile -t COMPREPLY < <(compgen -W "$wanted" -- "$cur")
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


#: The words that an argument may be, where its parser does not know them, because that would cost a start something.
_WORDS: dict[tuple[str, str], Callable[[], Iterable[str]]] = {
    ("attach", "scheme"): lambda: (scheme.value for scheme in ATTACHABLE),
    ("bench", "scheme"): lambda: (scheme.value for scheme in Scheme),
    ("explain", "code"): lambda: RULES,
    ("lab run", "name"): scenarios,
    ("lab shell", "scenario"): scenarios,
    ("switch", "scheme"): lambda: (scheme.value for scheme in SWITCHABLE),
}


def main() -> int:
    """Print the script."""
    sys.stdout.write(script())
    return 0


def script() -> str:
    """The completion, to be sourced by bash or put where bash-completion looks for it under the program's name."""
    commands = [command for verb in VERBS for command in _commands(verb)]
    groups = [verb for verb in VERBS if len(_commands(verb)) > 1]
    replaced = {
        "@VERBS@": " ".join(VERBS),
        "@GROUPS@": f"@({'|'.join(groups)})",
        "@VALUES@": "\n".join(line for name, parser in commands for line in _values(name, parser)),
        "@OPTIONS@": "\n".join([*(_options(*command) for command in commands), _line("help", [" ".join(VERBS)])]),
    }
    text = _SCRIPT
    for mark, words in replaced.items():
        text = text.replace(mark, words)
    return text


def _commands(verb: str) -> list[tuple[str, argparse.ArgumentParser]]:
    """The verb, and behind it each of its parts, as they are typed; with the parser of each."""
    parser = parser_of(verb)[1]
    groups = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parts = [(f"{verb} {name}", part) for group in groups for name, part in group.choices.items()]
    return [(verb, parser), *parts]


def _takes_value(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.nargs != 0


def _words(command: str, action: argparse.Action) -> str:
    known = _WORDS.get((command, action.dest))
    return " ".join(map(str, (action.choices or ()) if known is None else known()))


def _values(command: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in filter(_takes_value, parser._actions):
        how = _COMPLETED_BY.get(str(action.metavar), ":")
        if words := _words(command, action):
            how = f"mapfile -t COMPREPLY < <(compgen -W '{words}' -- \"$cur\")"
        yield f"        '{command} {action.option_strings[-1]}') {how}; return ;;"


def _options(command: str, parser: argparse.ArgumentParser) -> str:
    options = [action.option_strings[-1] for action in parser._actions if action.option_strings]
    valued = [action.option_strings[-1] for action in filter(_takes_value, parser._actions)]
    arguments, rest = list[str](), ""
    for action in parser._actions:
        if not action.option_strings:
            what = "BDF" if action.metavar == "BDF" else _words(command, action)
            arguments.append(what)
            rest = what if action.nargs == "*" else rest
    return _line(command, arguments, rest, options, valued)


def _line(
    command: str, arguments: Sequence[str], rest: str = "", options: Sequence[str] = (), valued: Sequence[str] = ()
) -> str:
    while arguments and not arguments[-1]:
        arguments = arguments[:-1]
    sets = [f"{name}='{' '.join(words)}'" for name, words in (("options", options), ("valued", valued)) if words]
    sets += [f"arguments=({' '.join(repr(one) for one in arguments)})"] if arguments else []
    sets += [f"rest='{rest}'"] if rest else []
    return f"        '{command}') {' '.join(sets)} ;;"


if __name__ == "__main__":
    sys.exit(main())
