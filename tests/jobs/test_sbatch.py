import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.geometry import Geometry
from jobs.sbatch import Job, ranges, sbatch_text

GOLDEN = Path(__file__).parents[1] / "golden" / "sbatch"
NASTY = '/data/it\'s "my" $(touch injected) `x` 100%j ünï #1'


def geometry(**changes: Any) -> Geometry:
    return Geometry.from_config({"kind": "slurm", "name": "site", "time_min": 60} | changes)


def job(**changes: Any) -> Job:
    sweep = "runs/bdg/sweeps/lambda_glcm"
    return replace(
        Job(
            name="bdg-lambda_glcm-bridging",
            geometry=geometry(),
            folder="/data/project",
            arguments=f"{sweep}/jobs/bridging-1.d",
            logs=f"/data/project/{sweep}/jobs/logs",
            frozen=f"/data/project/{sweep}/frozen/0123456789ab",
            python="/opt/bdg/bin/python",
            lead_s=180,
            comment="bdg-ba9876543210-bridging-1",
        ),
        **changes,
    )


FULL = geometry(
    nodes=4,
    devices=8,
    gpus=True,
    cpus_per_device=12,
    mem_gb=500.5,
    time_min=1440,
    partition="a100,h100",
    account="vision",
    qos="long",
    constraint="(a100|h100)&ib",
    exclusive=True,
    nice=100,
    options=["--reservation=deadline"],
    at_once=3,
    setup=["module purge", "module load apptainer/1.3"],
    launcher=["apptainer", "exec", "--nv", "my image.sif"],
    python="python3",
    environment={"NCCL_SOCKET_IFNAME": "ib0", "GREETING": "it's $HOME `x`"},
    max_restarts=5,
)
JOBS = {
    "single": job(),
    "array": job(indices=(0, 1, 2, 3, 7)),
    "full": job(geometry=FULL, indices=tuple(range(16)), lead_s=400),
    "nasty": job(
        folder=NASTY, arguments=f"{NASTY}/a.d", logs=f"{NASTY}/logs", frozen=f"{NASTY}/f", python=f"{NASTY}/python"
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_the_script_is_the_recorded_one(name: str) -> None:
    """To record anew after a change that is meant: BDG_RECORD=1."""
    path, text = GOLDEN / f"{name}.sbatch", sbatch_text(JOBS[name])
    if os.environ.get("BDG_RECORD"):
        path.write_text(text, encoding="utf-8")

    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", JOBS)
def test_bash_understands_the_recorded_script(name: str) -> None:
    subprocess.run(["bash", "-n", GOLDEN / f"{name}.sbatch"], check=True)


def test_all_options_stand_above_the_first_command() -> None:
    text = sbatch_text(JOBS["full"])

    assert text.rindex("#SBATCH") < text.index("\ncd ")
    assert not re.search(r"[\0-\x09\x0b-\x1f]", text)


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\x1b", "\\", "\u2028"])
@pytest.mark.parametrize("key", ["folder", "arguments", "logs", "frozen", "python"])
def test_a_path_that_slurm_cannot_take_is_refused(key: str, character: str) -> None:
    with pytest.raises(ValueError, match="choose another root="):
        sbatch_text(job(**{key: f"/data/a{character}#SBATCH --uid=0"}))


def test_a_path_that_pythonpath_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="'/data/a:b' has a colon"):
        sbatch_text(job(frozen="/data/a:b"))


def test_a_name_injects_no_option() -> None:
    text = sbatch_text(job(name='a b"\n#SBATCH --uid=0'))

    assert "#SBATCH --job-name=a_b___SBATCH_--uid=0\n" in text


@pytest.mark.parametrize(
    ("indices", "text"), [([0], "0"), ([0, 1, 2], "0-2"), ([0, 2, 3, 9], "0,2-3,9"), ([4, 6], "4,6")]
)
def test_indices_are_named_by_ranges(indices: list[int], text: str) -> None:
    assert ranges(indices) == text


# --- the script at work, with commands that only look like Slurm's ---

COMMANDS = {
    "srun": 'printf "%s\\0" "$@" >srun.args; env >srun.env; echo out; echo err >&2; eval "${FAKE_SRUN:-true}"',
    "scontrol": """case $1 in
  show) printf '%s\\n' node-7 node-8 ;;
  requeue) echo "$2" >>requeued; kill -KILL "$PPID" ;;  # as Slurm ends the script
esac""",
    "squeue": 'echo "$@" >squeue.args; echo "${FAKE_STATE:-RUNNING}"',
}
WORDS = ["train", "stage=bridging", "data.root='a $(touch injected) \"b\" ü *'", "x=\n", "identity='012345678901'"]


class Trial:
    """A folder in which the script runs, and what it did there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder / 'my "sweep" $(touch injected)', "runs/it's 50%"
        for path in (self.folder / "args", folder / "bin"):
            path.mkdir(parents=True)
        for name, text in COMMANDS.items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / "bin" / name).chmod(0o755)
        self.path = f"{folder}/bin:{os.environ['PATH']}"

    def __call__(self, srun: str, index: str | None = "3", **environment: str) -> int:
        arguments = self.folder / "args" / f"{index or 0}.args"
        arguments.write_bytes(b"".join(word.encode() + b"\0" for word in (self.run, *WORDS)))
        text = sbatch_text(
            job(
                geometry=geometry(max_restarts=2, cpus_per_device=6, environment={"MINE": "a 'b' $HOME"}),
                folder=str(self.folder),
                arguments="args",
                frozen=f"{self.folder}/frozen",
                indices=(3,) if index else (),
            )
        )
        array = {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": index} if index else {}
        slurm = {"SLURM_JOB_ID": "43", "SLURM_JOB_NODELIST": "node-[7-8]", "FAKE_SRUN": srun}
        done = subprocess.run(
            ["bash"], input=text, text=True, env={"PATH": self.path, **slurm, **array, **environment}, check=False
        )
        return done.returncode

    def read(self, name: str) -> str:
        return (self.folder / name).read_text() if (self.folder / name).exists() else ""


DONE = 'mkdir -p "$RUN/weights"; touch "$RUN/weights/ema.safetensors"; echo done >"$RUN/STATUS"'
LEAVES = 'echo preempted >"$RUN/STATUS"; echo step 7 >"$BDG_REQUEUE_REQUEST"'


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


def in_run(trial: Trial, command: str) -> str:
    return command.replace("$RUN", trial.run)


def test_a_run_that_is_done_ends_the_job_well_whatever_srun_says(trial: Trial) -> None:
    assert trial(in_run(trial, DONE)) == 0
    assert trial(in_run(trial, DONE) + "; exit 134") == 0
    assert trial.read("requeued") == ""


def test_the_ranks_get_the_words_and_nothing_else_is_run(trial: Trial) -> None:
    trial(in_run(trial, DONE))

    command = ["--kill-on-bad-exit=1", "--cpus-per-task=6", "/opt/bdg/bin/python", "-m", "bdg", *WORDS]
    assert trial.read("srun.args").split("\0")[:-1] == command
    assert not [*trial.folder.parent.rglob("injected")]


def test_the_ranks_find_each_other_and_the_frozen_code(trial: Trial) -> None:
    trial(in_run(trial, DONE), PYTHONPATH="mine")

    environment = dict(line.partition("=")[::2] for line in trial.read("srun.env").splitlines())
    assert environment["PYTHONPATH"] == f"{trial.folder}/frozen:mine"
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("node-7", "10043")
    assert (environment["OMP_NUM_THREADS"], environment["SLURM_EXPORT_ENV"]) == ("6", "ALL")
    assert environment["MINE"] == "a 'b' $HOME"
    assert environment["BDG_REQUEUE_REQUEST"] == f"{trial.run}/requeue-request.40_3"


@pytest.mark.parametrize(("index", "name"), [("3", "40_3"), (None, "43")])
def test_each_restart_writes_files_of_its_own(trial: Trial, index: str | None, name: str) -> None:
    trial(in_run(trial, LEAVES), index)
    trial(in_run(trial, DONE), index, SLURM_RESTART_COUNT="1")

    for restart in (0, 1):
        assert trial.read(f"{trial.run}/slurm/{name}.restart{restart}.out") == "out\n"
        assert trial.read(f"{trial.run}/slurm/{name}.restart{restart}.err") == "err\n"


@pytest.mark.parametrize(("index", "name"), [("3", "40_3"), (None, "43")])
def test_a_run_that_saved_and_left_is_put_back_by_its_own_id(trial: Trial, index: str | None, name: str) -> None:
    trial(in_run(trial, LEAVES), index)

    assert trial.read("requeued") == f"{name}\n"
    assert trial.read("squeue.args") == f"--noheader --jobs={name} --format=%T\n"
    assert not [*(trial.folder / trial.run).glob("requeue-request*")]


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PREEMPTED", ""])
def test_a_job_that_does_not_run_any_more_is_not_put_back(trial: Trial, state: str) -> None:
    assert trial(in_run(trial, LEAVES), FAKE_STATE=state or " ") == 75
    assert trial.read("requeued") == ""


def test_restarts_are_bounded(trial: Trial) -> None:
    trial(in_run(trial, LEAVES), SLURM_RESTART_COUNT="1")
    assert trial.read("requeued") == "40_3\n"

    assert trial(in_run(trial, LEAVES), SLURM_RESTART_COUNT="2") == 75
    assert trial.read("requeued") == "40_3\n"


@pytest.mark.parametrize(("srun", "code"), [("exit 3", 3), ("true", 75), ('echo done >"$RUN/STATUS"', 75)])
def test_a_run_that_is_not_done_fails_the_job(trial: Trial, srun: str, code: int) -> None:
    assert trial(in_run(trial, srun)) == code
    assert trial.read("requeued") == ""


def test_an_old_request_is_no_request(trial: Trial) -> None:
    request = trial.folder / trial.run / "requeue-request.40_3"
    request.parent.mkdir(parents=True)
    request.touch()

    assert trial("exit 1") == 1
    assert trial.read("requeued") == ""


def test_a_signal_does_not_end_the_script_before_its_ranks(trial: Trial) -> None:
    """Slurm gives it to the ranks as well; they save and leave."""
    tell = 'for signal in TERM CONT USR1; do kill -$signal "$PPID"; sleep 0.05; done; '

    trial(tell + in_run(trial, LEAVES))

    assert trial.read("requeued") == "40_3\n"


def test_an_index_without_words_fails_at_once(trial: Trial) -> None:
    assert trial("true", SLURM_ARRAY_TASK_ID="4") == 1
    assert trial.read("srun.args") == ""
