"""medreason completion bash: a script that has the Tab key complete commands, groups, settings and values.

    eval "$(medreason completion bash)"                    for bash, in ~/.bashrc
    eval "$(medreason completion zsh)"                     for zsh, in ~/.zshrc, after compinit
    medreason completion fish | source                     for fish, in ~/.config/fish/config.fish

Hydra's own knows neither `python -m` nor a command in front of the settings. The script asks `medreason completion
query LINE`, with the line up to the cursor, and prints what its last word may become, a line each.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import PurePath

from medreason.config import (
    ChatConfig,
    EvaluateConfig,
    ExportConfig,
    LrThenRankConfig,
    RunsConfig,
    SampleConfig,
    ServeConfig,
    TrainConfig,
    VerdictConfig,
)
from medreason.core.commands import COMMANDS
from medreason.core.outside import one_line
from medreason.core.settings_help import Setting, choices, describe, root

SCHEMAS = {
    "train": TrainConfig,
    "data": TrainConfig,
    "dashboard": TrainConfig,
    "evaluate": EvaluateConfig,
    "verdict": VerdictConfig,
    "sample": SampleConfig,
    "export": ExportConfig,
    "chat": ChatConfig,
    "serve": ServeConfig,
    "runs": RunsConfig,
}
OPTIONS = ("--cfg", "--help", "--hydra-help", "--multirun")
SHELLS = ("bash", "zsh", "fish")

# The last word is taken from the line: bash's own stops at `=` and `:`. What ends in neither = nor . is whole.
BASH = """\
_medreason() {
    local line="${COMP_LINE:0:COMP_POINT}" ask=() found
    case "${COMP_WORDS[0]##*/}" in
        python*) [[ "$line" == *" -m medreason"* ]] || return 0; ask=("${COMP_WORDS[0]}" -m medreason) ;;
        *) ask=("${COMP_WORDS[0]}") ;;
    esac
    local word="${line##*[[:space:]]}" stop=""
    [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]] && stop="${word%"${word##*=}"}"
    COMPREPLY=()
    while IFS= read -r found; do
        [[ "$found" == *[=.] ]] || found+=" "
        COMPREPLY+=("${found#"$stop"}")
    done < <("${ask[@]}" completion query "$line" 2>/dev/null)
}
complete -o default -o nospace -F _medreason medreason
complete -p python >/dev/null 2>&1 || complete -o default -o nospace -F _medreason python
complete -p python3 >/dev/null 2>&1 || complete -o default -o nospace -F _medreason python3
"""

ZSH = """\
_medreason() {
    local line="${(j: :)words[1,CURRENT]}" found
    local -a ask whole open
    ask=("${words[1]}")
    if [[ "${words[1]:t}" == python* ]]; then
        [[ "$line" == *" -m medreason"* ]] || { _default; return }
        ask=("${words[1]}" -m medreason)
    fi
    for found in "${(@f)$("${ask[@]}" completion query "$line" 2>/dev/null)}"; do
        [[ "$found" == *[=.] ]] && open+=("$found") || { [[ -n "$found" ]] && whole+=("$found") }
    done
    (( $#open )) && compadd -S '' -- "${open[@]}"
    (( $#whole )) && compadd -- "${whole[@]}"
    if (( $#open + $#whole == 0 )); then
        compset -P '*='
        _files
    fi
}
compdef _medreason medreason python python3
"""

FISH = """\
function __medreason
    set -l words (commandline -opc) (commandline -ct)
    set -l ask $words[1]
    if string match -q '*python*' -- $words[1]
        string match -q '*-m medreason*' -- "$words"; or return
        set ask $words[1] -m medreason
    end
    $ask completion query "$words" 2>/dev/null
end
complete -c medreason -a '(__medreason)'
complete -c python -a '(__medreason)'
complete -c python3 -a '(__medreason)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def candidates(line: str) -> list[str]:
    """What the last word of a line may become: whole words, or names that end in `=` or `.` and go on."""
    *words, word = re.split(r"\s", line)
    before = [each for each in words if each]
    if before and PurePath(before[0]).name.startswith("python") and "-m" in before:  # medreason.train, medreason train
        before = before[before.index("-m") + 1 :]
        if not before:
            return starting([f"medreason.{name}" for name in COMMANDS], word)
        if before[0].startswith("medreason."):
            before = ["medreason", before[0].removeprefix("medreason."), *before[1:]]
    if len(before) == 1:
        return starting([*COMMANDS, "--help", "--version"], word)
    if len(before) < 2:
        return []
    name = before[1]
    if name == "completion":
        return starting(SHELLS, word) if len(before) == 2 else []
    if name not in SCHEMAS:
        return []
    if word.startswith("-"):
        return starting(OPTIONS, word)
    if before[-1] == "--cfg":
        return starting(["job", "hydra", "all"], word)
    schema = SCHEMAS[name]
    settings = describe(schema)
    if name == "train":
        settings += describe(LrThenRankConfig, prefix="hydra.sweeper.")
    return completed(settings, groups() if schema is TrainConfig else {}, word)


def groups() -> dict[str, list[str]]:
    """The config groups of a training run and their choices."""
    folders = [root() / "conf" / field.name for field in fields(TrainConfig) if is_dataclass(field.type)]
    folders += [root() / name for name in ("experiments", "sweeps")]
    return {folder.name: list(choices(folder)) for folder in folders}


def completed(settings: Sequence[Setting], group_choices: Mapping[str, Sequence[str]], word: str) -> list[str]:
    """What a setting that has been begun may become; nothing for a value that is free, which may be a file."""
    name, equals, _ = word.partition("=")
    if equals:
        values = group_choices.get(name) or next((values_of(one) for one in settings if one.name == name), [])
        return starting([f"{name}={value}" for value in values], word)
    names = [f"{name}=" for name in (*group_choices, *(one.name for one in settings))]
    # a step of a dotted name at a time: the names of a hundred settings would fill the terminal
    steps = [word + rest[: rest.find(".") + 1] if "." in (rest := each[len(word) :]) else each
             for each in starting(names, word)]  # fmt: skip
    found = list(dict.fromkeys(steps))
    return completed(settings, group_choices, found[0]) if found[:1] != [word] and found == [f"{word}."] else found


def values_of(setting: Setting) -> list[str]:
    """Every value of a setting that has a fixed set of them."""
    fixed = list(setting.choices) or (["true", "false"] if setting.type.startswith("true or false") else [])
    return [*fixed, "null"] if fixed and setting.type.endswith("null") else fixed


def starting(words: Sequence[str], begin: str) -> list[str]:
    return [word for word in words if word.startswith(begin)]


def main(words: Sequence[str] | None = None) -> int:
    """Prints a shell's script, or the candidates of a line; 2 for anything else."""
    words = sys.argv[1:] if words is None else list(words)
    if len(words) == 2 and words[0] == "query":
        for word in candidates(words[1]):
            print(word)
        return 0
    if len(words) == 1 and words[0] in SCRIPTS:
        print(SCRIPTS[words[0]], end="")
        return 0
    usage = 'medreason completion bash, zsh or fish; for bash: eval "$(medreason completion bash)"'
    if words and set(words) <= {"-h", "--help"}:
        print(f"usage: {usage}")
        return 0
    print(f"medreason.completion: {one_line(' '.join(words)) or 'no shell'}: write {usage}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
