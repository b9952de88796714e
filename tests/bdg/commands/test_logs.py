"""`bdg logs` on made files: which output is the newest, what of it is shown, and how it is followed."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bdg.cli import main
from bdg.commands.logs import follow, sizes
from jobs.output import last_words, outputs, tail

RUN, OTHER = "ab" * 6, "ac" * 6


def output(folder: Path, name: str, text: str, age_s: float = 0) -> Path:
    path = folder / "slurm" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


@pytest.fixture
def run(made: Any) -> Path:
    """A run of two jobs, of which the second was requeued twice."""
    folder = made.run(RUN, stage="bridging")
    output(folder, "9_1.restart0.out", "first job\n", 400)
    output(folder, "12_0.restart0.out", "begins\n", 300)
    output(folder, "12_0.restart2.out", "".join(f"step {i}\n" for i in range(100)), 100)
    output(folder, "12_0.restart2.err", "50%\r100%\x1b[31m red\n", 100)
    output(folder, "12_0.restart10.out", "the last\n", 50)
    return folder


@pytest.mark.parametrize(
    "name", [RUN, "ab", f"runs/demo/bridging/{RUN}", f"./runs/demo/bridging/{RUN}/", "one/x=0.1,y=1-2/bridging"]
)
def test_a_run_is_named_in_many_ways(made: Any, run: Path, name: str, capsys: Any) -> None:
    made.sweep("one", {"x=0.1,y=1-2": [("bridging", RUN)]})

    assert main(["logs", name]) == 0

    assert capsys.readouterr().out.splitlines()[1:] == ["--- 12_0.restart10.out", "the last"]


def test_a_restart_is_asked_for_by_its_number(run: Path, capsys: Any) -> None:
    assert main(["logs", "ab", "restart=2", "lines=2"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "--- 12_0.restart2.out",
        "step 98",
        "step 99",
        "--- 12_0.restart2.err",
        "100% red",
    ]

    assert main(["logs", "ab", "restart=7"]) == 1
    assert "restart=7: job 12_0 has 0, 2, 10" in capsys.readouterr().err


def test_before_the_ranks_print_the_script_does(made: Any, capsys: Any) -> None:
    line = {"job": "12", "where": "slurm", "tasks": {"0": RUN, "1": OTHER}}
    sweep = made.sweep("one", {"x": [("bridging", RUN)], "y": [("bridging", OTHER)]}, [line])
    (sweep / "jobs" / "logs").mkdir(parents=True)
    (sweep / "jobs" / "logs" / "12_0.out").write_text("module: not found\n")

    assert main(["logs", "one/x/bridging"]) == 0
    assert "module: not found" in capsys.readouterr().out
    assert main(["logs", "one/y/bridging"]) == 1
    assert "its job 12_1 has printed nothing yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a", "'a' begins 2 identities (demo/bridging/abababababab, demo/generation/acacacacacac)"),
        ("abababababac", "no run 'abababababac' in runs: did you mean abababababab?"),
        ("zz", "there are the runs demo/bridging/abababababab, demo/generation/acacacacacac"),
        ("one/z/bridging", "sweep demo/one has no cell 'z': there are the cells x"),
        ("one/x/restoration", "cell x has no stage 'restoration': there are bridging"),
        (OTHER, "nothing was kept of what it printed, as it was not started by a sweep"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(made: Any, run: Path, capsys: Any, name: str, said: str) -> None:
    made.run(OTHER)
    made.sweep("one", {"x": [("bridging", RUN)]})

    assert main(["logs", name]) == 1

    assert said in capsys.readouterr().err


def test_following_gives_whole_lines_until_the_run_ends(made: Any) -> None:
    folder = made.run(RUN, "running")
    path = output(folder, "12_0.restart0.out", "before\n")

    def goes_on() -> None:
        with path.open("a") as file:
            file.write("one\ntw")
        output(folder, "12_0.restart1.out", "again\n")
        with path.open("a") as file:
            file.write("o\n")
        (folder / "STATUS").write_text("done\n")

    lines = follow(folder, sizes(folder))
    thread = threading.Timer(0.1, goes_on)
    thread.start()

    assert sorted(lines) == ["again", "one", "two"]
    thread.join()


def test_a_finished_run_is_not_followed_for_ever(run: Path, capsys: Any) -> None:
    assert main(["logs", "ab", "follow=true"]) == 0


def test_the_last_words_are_those_of_its_errors(tmp_path: Path) -> None:
    assert last_words(tmp_path) == []
    output(tmp_path, "12_0.restart0.out", "fine\n")
    assert last_words(tmp_path) == ["fine"]
    output(tmp_path, "12_0.restart0.err", "wrong\n")
    assert last_words(tmp_path) == ["wrong"]
    assert [o.job for o in outputs(tmp_path)] == ["12_0"]


def test_a_large_file_is_read_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "large.out"
    path.write_bytes(b"x" * 10_000_000 + b"\nlast \xff\n")

    assert tail(path, 1) == ["last \N{REPLACEMENT CHARACTER}"]
    assert tail(path, 0) == []
    assert tail(tmp_path / "gone", 5) == []
