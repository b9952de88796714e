"""The command line from outside: words, statuses, messages, help, sweeps and completion."""

import importlib.metadata
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from bdg.cli import main
from bdg.commands.compose import open_hydra
from bdg.commands.invocation import cells, name_words, parse, quote
from bdg.commands.request import Request
from bdg.commands.verbs import VERBS

RESTORE = VERBS["restore"]
DOCTOR = VERBS["doctor"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with its own ./conf: small configs for `train` and `restore`."""
    files = {
        "train.yaml": "defaults: [{stage: first}, _self_, {experiment: null}]\nseed: 0\nneeded: ???\nnested: {steps: 3}\n",
        "restore.yaml": "input: ???\noutput: ???\n",
        "stage/first.yaml": "name: first\n",
        "stage/second.yaml": "name: second\n",
        "experiment/mine.yaml": "# @package _global_\nseed: 7\n",
    }
    for name, text in files.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Recorder:
    """Stands in for a verb's module and keeps what it was run with."""

    def __init__(self) -> None:
        self.configs: list[DictConfig] = []
        self.requests: list[Request] = []

    def run(self, config: DictConfig, request: Request) -> None:
        self.configs.append(config)
        self.requests.append(request)


@pytest.fixture
def train(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    install(monkeypatch, "train", recorder.run)
    return recorder


def install(monkeypatch: pytest.MonkeyPatch, verb: str, run: Any) -> None:
    module = types.ModuleType(f"bdg.commands.{verb}")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def failing_with(error: BaseException) -> Any:
    def run(config: DictConfig, request: Request) -> None:
        raise error

    return run


# --- what needs no config ---


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["--version"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from bdg.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'lightning', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_verb_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb in VERBS.values():
        assert [line for line in lines if line.split()[:1] == [verb.name] and line.endswith(verb.summary)]


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"bdg {importlib.metadata.version('bdg')}\n"


def test_module_and_command_are_the_same_program() -> None:
    command = [str(Path(sys.executable).with_name("bdg"))], [sys.executable, "-m", "bdg"]
    outputs = [subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in command]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("typed", "said"),
    [("trian", "train"), ("restor", "restore"), ("xyz", "pipeline"), ("stage=first", "the verb comes first")],
)
def test_unknown_verb_is_answered_with_what_was_meant(
    typed: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([typed]) == 2
    message = capsys.readouterr().err
    assert message.startswith("bdg: error: ")
    assert f"'{typed}'" in message
    assert said in message


# --- words and overrides ---


@hypothesis.settings(deadline=None)
@hypothesis.given(st.text(st.sampled_from("\\'\"${}[](),:=~# %aä雨"), max_size=8))
@hypothesis.example("with space.png")
@hypothesis.example("null")
def test_a_quoted_word_reaches_the_config_as_typed(word: str) -> None:
    value = OverridesParser.create().parse_override(f"input={quote(word)}").value()
    assert OmegaConf.create({"input": value}).input == word


def test_a_range_of_shards_needs_no_second_quotes() -> None:
    assert name_words(RESTORE, ["a=a-{000..009}.tar", "b='a-{0..9}.tar'", "c={a:1}"]) == [
        "a='a-{000..009}.tar'",
        "b='a-{0..9}.tar'",
        "c={a:1}",
    ]


def test_words_fill_the_verbs_keys_in_order() -> None:
    assert name_words(RESTORE, ["in.png", "steps=3", "out.png"]) == ["input='in.png'", "steps=3", "output='out.png'"]


def test_words_fill_only_keys_that_are_not_set_by_name() -> None:
    assert name_words(RESTORE, ["input=in.png", "out.png"]) == ["input=in.png", "output='out.png'"]


def test_all_words_of_a_verb_that_takes_many_are_a_list() -> None:
    assert name_words(DOCTOR, ["a b", "show=3", "c,d"]) == ["show=3", "source=['a b','c,d']"]
    assert name_words(DOCTOR, ["source=a"]) == ["source=a"]
    with pytest.raises(ValueError, match=r"'b' is one word too many: type bdg doctor SOURCE\.\.\. "):
        name_words(DOCTOR, ["source=a", "b"])


@pytest.mark.parametrize("path", ["./a=b.png", "/a=b.png", "../a=b.png", "~/a=b.png"])
def test_a_path_with_an_equals_sign_is_a_word_if_it_begins_as_a_path(path: str) -> None:
    assert name_words(RESTORE, [path]) == [f"input='{path}'"]


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="shards is given 2 times"):
        name_words(RESTORE, ["shards=a-0.tar", "shards=a-1.tar"])


def test_without_such_a_beginning_it_is_an_override() -> None:
    assert name_words(RESTORE, ["a=b.png"]) == ["a=b.png"]


def test_deletion_is_not_a_word() -> None:
    assert name_words(RESTORE, ["~callbacks.ema"]) == ["~callbacks.ema"]


def test_a_word_too_many_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restore", "a", "b", "c"]) == 1
    assert capsys.readouterr().err == (
        "bdg restore: error: 'c' is one word too many: type bdg restore INPUT OUTPUT [key=value ...]\n"
    )


def test_verb_gets_the_config_and_the_request_behind_it(train: Recorder) -> None:
    assert main(["train", "seed=3", "stage=second"]) == 0
    assert train.configs[0].seed == 3
    assert train.configs[0].stage.name == "second"
    assert "hydra" not in train.configs[0]
    assert train.requests == [Request("train", ("seed=3", "stage=second"))]


def test_running_leaves_no_folder_behind(train: Recorder, folder: Path) -> None:
    main(["train"])
    assert [path.name for path in folder.iterdir()] == ["conf"]


# --- Hydra's flags ---


def test_cfg_prints_the_config_and_runs_nothing(train: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "job", "experiment=mine"]) == 0
    assert capsys.readouterr().out == "stage:\n  name: first\nseed: 7\nneeded: ???\nnested:\n  steps: 3\n"
    assert not train.configs


def test_cfg_all_has_hydras_node_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--cfg", "all"])
    assert "\nhydra:\n" in f"\n{capsys.readouterr().out}"


def test_flags_may_stand_between_overrides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "seed=1", "--cfg", "job", "-p", "nested", "nested.steps=9"]) == 0
    assert capsys.readouterr().out == "# @package nested\nsteps: 9\n"


def test_resolve_replaces_interpolations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--cfg", "job", "--resolve", "-p", "nested", "nested.steps=${seed}"])
    assert capsys.readouterr().out == "# @package nested\nsteps: 0\n"


def test_config_name_chooses_another_file(train: Recorder, folder: Path) -> None:
    (folder / "conf" / "other.yaml").write_text("seed: 42\n")
    main(["train", "-cn", "other"])
    assert train.configs[0].seed == 42
    assert train.requests[0].config_name == "other"


def test_config_dir_precedes_the_local_folder(train: Recorder, folder: Path) -> None:
    (folder / "mine" / "stage").mkdir(parents=True)
    (folder / "mine" / "stage" / "first.yaml").write_text("name: theirs\n")
    main(["train", "--config-dir", "mine"])
    assert train.configs[0].stage.name == "theirs"
    assert train.requests[0].compose().stage.name == "theirs"


def test_info_prints_the_search_path(folder: Path) -> None:
    command = [sys.executable, "-m", "bdg", "train", "--info", "searchpath"]  # Hydra sets up logging for it
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.index(str(folder / "conf")) < shown.index("pkg://conf")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--resolve"],
        ["--cfg"],
        ["--cfg", "job", "-m"],
        ["-cp", "x"],
        ["--experimental-rerun", "x"],
        ["-sc"],
        ["--nope"],
    ],
)
def test_flags_that_make_no_sense_are_usage_errors(
    arguments: list[str], train: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", *arguments])
    assert stopped.value.code == 2
    assert "bdg train: error: " in capsys.readouterr().err
    assert not train.configs


# --- errors ---


@pytest.mark.parametrize("error", [ValueError("levels=0: must be 2 or more"), FileNotFoundError("no file 'x'")])
def test_what_the_user_can_mend_is_one_line(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, "train", failing_with(error))
    assert main(["train"]) == 1
    assert capsys.readouterr().err == f"bdg train: error: {error}\n"


def test_traceback_on_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BDG_TRACEBACK", "1")
    install(monkeypatch, "train", failing_with(ValueError("bad")))
    assert main(["train"]) == 1
    assert capsys.readouterr().err.startswith("Traceback")


def test_a_bug_keeps_its_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, "train", failing_with(RuntimeError("shape")))
    assert main(["train"]) == 1
    assert capsys.readouterr().err.startswith("Traceback")


def test_interruption_is_one_line_and_status_130(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, "train", failing_with(KeyboardInterrupt()))
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "bdg train: interrupted\n"


def test_missing_value_is_named_with_what_to_type(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, "train", lambda config, request: config.needed)
    assert main(["train"]) == 1
    assert capsys.readouterr().err == "bdg train: error: needed has no value: add needed=VALUE to the command\n"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sead=1", "did you mean seed?"),
        ("steps=1", "did you mean nested.steps?"),
        ("nested.stepps=1", "did you mean nested.steps"),
        ("stages=first", "did you mean stage"),
        ("zzz=1", "bdg train --help"),
    ],
)
def test_unknown_key_is_answered_with_the_key_that_was_meant(
    override: str, said: str, train: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", override]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"bdg train: error: no key '{override.partition('=')[0]}' in config 'train': ")
    assert said in message
    assert message.endswith(f"To add a key of your own: +{override}\n")
    assert not train.configs


def test_unknown_choice_is_answered_with_the_choices(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "stage=third"]) == 1
    message = capsys.readouterr().err
    assert "Could not find 'stage/third'" in message
    assert {"\tfirst", "\tsecond"} <= set(message.splitlines())


def test_a_list_of_values_without_m_says_how_to_sweep(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "seed=1,2"]) == 1
    assert "--multirun" in capsys.readouterr().err


def test_an_override_that_cannot_be_read_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "seed=[1"]) == 1
    assert "'seed=[1'" in capsys.readouterr().err


def test_a_broken_config_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "conf" / "stage" / "broken.yaml").write_text("a: {b\n")
    assert main(["train", "stage=broken"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("bdg train: error: ")
    assert "broken.yaml" in message


# --- sweeps of verbs that have no plan ---


@pytest.fixture
def evaluate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    install(monkeypatch, "evaluate", recorder.run)
    return recorder


def test_sweep_runs_the_product_in_order(evaluate: Recorder) -> None:
    assert (
        main(["evaluate", "-m", "-cn", "train", "stage=first,second", "seed=range(2)", "+list=[1,2],[3]", "needed=x"])
        == 0
    )
    ran = [(config.stage.name, config.seed, list(config.list)) for config in evaluate.configs]
    assert ran == [(s, n, v) for s in ("first", "second") for n in (0, 1) for v in ([1, 2], [3])]
    assert evaluate.requests[0].overrides == ("stage=first", "seed=0", "+list=[1,2]", "needed=x")


def test_glob_sweeps_over_the_choices_of_the_search_path(evaluate: Recorder) -> None:
    main(["evaluate", "-m", "-cn", "train", "stage=glob([f*,s*])"])
    assert [config.stage.name for config in evaluate.configs] == ["first", "second"]


def test_deletion_survives_a_sweep(evaluate: Recorder) -> None:
    main(["evaluate", "-m", "-cn", "train", "~nested", "seed=1,2"])
    assert ["nested" in config for config in evaluate.configs] == [False, False]


def test_an_interval_is_refused_with_a_way_out(evaluate: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "-m", "-cn", "train", "seed=interval(0,1)"]) == 1
    assert "range(start, stop, step)" in capsys.readouterr().err


def test_a_failing_cell_is_reported_and_the_rest_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = []

    def run(config: DictConfig, request: Request) -> None:
        if config.seed == 1:
            raise ValueError("seed 1 is cursed")
        finished.append(config.seed)

    install(monkeypatch, "evaluate", run)
    assert main(["evaluate", "-m", "-cn", "train", "seed=0,1,2"]) == 1
    shown = capsys.readouterr()
    assert finished == [0, 2]
    assert shown.out.splitlines() == [f"bdg evaluate [{n + 1}/3] seed={n}" for n in range(3)]
    assert shown.err == (
        "bdg evaluate [2/3] seed=1: error: seed 1 is cursed\nbdg evaluate: error: 1 of 3 cells failed\n"
    )


def test_a_mistyped_cell_stops_the_sweep_before_it_begins(evaluate: Recorder) -> None:
    assert main(["evaluate", "-m", "-cn", "train", "stage=first,thrid"]) == 1
    assert not evaluate.configs


# --- help of a verb ---


def test_help_of_a_verb_names_groups_choices_keys_and_examples(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    choices, keys = text.split("\nKeys")
    choice_rows, key_rows = (
        {line.split()[0]: line.split()[1:] for line in t.splitlines() if line[:2] == "  "} for t in (choices, keys)
    )
    assert {"[first]", "second"} <= set(choice_rows["stage"])
    assert "mine" in choice_rows["experiment"]
    assert key_rows["nested"] == [".steps"]
    assert key_rows["needed"] == ["(you", "choose)"]
    assert all(f"  {example}" in text for example in VERBS["train"].examples)


def test_help_of_a_verb_does_not_import_torch(folder: Path) -> None:
    code = (
        "import sys; from bdg.cli import main; main(['train', '--help']);"
        "main(['train', '--cfg', 'job']); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_works_while_a_choice_is_still_open(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "conf" / "restore.yaml").write_text("defaults: [{stage: '???'}]\ninput: ???\n")
    assert main(["restore", "--help"]) == 0
    assert "second" in capsys.readouterr().out


# --- completion ---


def completions(
    line: str, shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", f"query={shell}"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out.split("\n" if shell == "fish" else None)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bdg tr", {"train"}),
        ("bdg p", {"pipeline", "pack", "probe", "preflight", "prune", "push"}),
        ("bdg ", set(VERBS)),
        ("bdg train sta", {"stage=", "stage."}),
        ("bdg train stage=se", {"stage=second"}),
        ("bdg train seed=1 nested.", {"nested.steps="}),
        ("bdg train experiment=mine seed=", {"seed=7"}),
        ("bdg train -m stage=first,second nest", {"nested."}),
        ("/some/where/bdg train nest", {"nested."}),
        ("bdg restore in.png 'a b.png' inp", {"input="}),
    ],
)
def test_completion(
    line: str,
    expected: set[str],
    shell: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert set(completions(line, shell, monkeypatch, capsys)) - {""} == expected


@pytest.mark.parametrize("line", ["bdg nope x", "bdg restore ./pho", "bdg train seed=[ x", "bdg train --cf"])
def test_lines_that_cannot_be_completed_stay_silent(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "".join(completions(line, "bash", monkeypatch, capsys)) == ""


def test_completion_knows_the_config_dir_of_the_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine" / "stage").mkdir(parents=True)
    (folder / "mine" / "stage" / "theirs.yaml").write_text("name: theirs\n")
    assert completions("bdg train --config-dir mine stage=th", "bash", monkeypatch, capsys) == ["stage=theirs"]


def test_bash_completes_with_what_was_installed(folder: Path) -> None:
    scripts = Path(sys.executable).parent
    script = """
    eval "$(bdg -sc install=bash)"
    COMP_LINE='bdg train stage=s' COMP_POINT=17 COMP_CWORD=2
    hydra_bash_completion
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["stage=second"], done.stderr


# --- the table ---


@pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))
def test_examples_compose(verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for example in verb.examples:
        program, name, *arguments = shlex.split(example)
        assert (program, name) == ("bdg", verb.name)
        overrides = name_words(verb, parse(verb, arguments).overrides)
        for cell in cells(open_hydra(), overrides):
            Request(verb.file, cell).compose()
