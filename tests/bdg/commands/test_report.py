"""`bdg report` and `bdg stats`: their words and numbers for sweeps whose truth is known, and for sweeps that are damaged."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from report import break_runs, made_up_sweep, write

import bdg.commands.report as command
from bdg.cli import main
from jobs.plan import Plan

pytest.importorskip("plotly", reason="needs the extra 'report'")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """2 lambdas x 2 scales x 2 seeds; lambda=0.1 and more scales are better."""
    monkeypatch.chdir(tmp_path)
    return made_up_sweep(Path("runs"), "small", [0.1, 0.4], [[1, 2], [1, 2, 4]], [0, 1], steps=100)


def facts(page: Path, what: str = "facts") -> Any:
    """What the page was given."""
    text = re.search(rf'id="{what}">(.*?)</script>', page.read_text(), re.DOTALL)
    assert text
    return json.loads(text[1])


def last_runs(sweep: Path) -> list[Path]:
    plan = Plan.from_dict(json.loads((sweep / "plan.json").read_text()))
    return [Path(plan.tasks[cell.tasks[-1]].folder) for cell in plan.cells]


def test_the_page_asks_and_answers(sweep: Path, capsys: Any) -> None:
    assert main(["report", "small", "json=tables.json"]) == 0

    said = capsys.readouterr().out
    assert (
        "Which lambda (0.1, 0.4) and which scales ([1, 2], [1, 2, 4]) restores best, by PSNR, mean over 5 degrad"
        in said
    )
    assert re.search(r"lambda=0.1, scales=\[1, 2, 4\] (is best|has the highest PSNR)", said)
    page = facts(sweep / "report.html")
    assert (page["question"] in said, page["answer"] in said) == (True, True)
    assert [panel["kind"] for panel in page["panels"]][:3] == ["table", "curve", "heat"]
    assert page["progress"] == {"done": 18}
    assert (page["metrics"], len(page["settings"]), len(page["runs"]), len(page["tasks"])) == (
        ["psnr", "ssim"],
        4,
        8,
        18,
    )
    assert next(iter(page["importance"]["psnr"]["mean"])) in ("stage.lambda", "glcm.scales")
    assert set(page["curves"]["names"]) >= {"loss/total", "mas/cosine"}
    assert [row["saved"] > 0 for row in page["cost"]] == [True, False, False]
    assert "test images: 120 images" in page["source"]
    tables = json.loads(Path("tables.json").read_text())
    assert tables["methods"]["over both"]
    assert len(tables["comparisons"]) == 3


def test_stats_are_those_of_the_page(sweep: Path, capsys: Any) -> None:
    assert main(["report", "small"]) == 0
    capsys.readouterr()
    assert main(["stats", "small", "json=stats.json"]) == 0

    said = " ".join(capsys.readouterr().out.split())
    assert facts(sweep / "report.html")["answer"] in said
    written = json.loads(Path("stats.json").read_text())
    first = written["scores"][0]
    shown = facts(sweep / "report.html")["settings"][0]["scores"]["psnr"]["mean"]
    assert shown["mean"] == pytest.approx(first["mean"], abs=1e-5)
    assert first["over_both"][0] < first["mean"] < first["over_both"][1]
    assert (first["images"], first["photographs"], len(first["by_seed"])) == (120, 12, 2)


def test_single_runs_are_compared_with_the_one_that_is_named(sweep: Path, capsys: Any) -> None:
    first, second = (run.name for run in last_runs(sweep)[:2])
    assert main(["stats", first, second, "base=first", "json=stats.json"]) == 0
    assert f"PSNR of each minus that of {first}" in capsys.readouterr().out
    assert {each["setting"] for each in json.loads(Path("stats.json").read_text())["comparisons"]} == {second}


def test_a_sweep_that_was_only_planned_has_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    folder = made_up_sweep(Path("runs"), "new", done=0)
    assert main(["report", "new"]) == 0
    assert "No run has been measured yet." in capsys.readouterr().out
    assert facts(folder / "report.html")["progress"] == {"missing": 57}


def test_while_runs_are_missing_the_answer_is_preliminary(sweep: Path, capsys: Any) -> None:
    shutil.rmtree(last_runs(sweep)[0])  # as if deleted meanwhile
    assert main(["report", "small"]) == 0
    assert "So far (7 of 8 runs measured): " in capsys.readouterr().out


def test_without_values_of_images_the_last_validation_is_shown(sweep: Path, capsys: Any) -> None:
    shutil.rmtree(last_runs(sweep)[0] / "evaluation")
    assert main(["report", "small"]) == 0
    page = facts(sweep / "report.html")
    assert page["source"].startswith("last validation: RGB, border 0")
    assert "1 run without values of single images" in page["notes"][0]
    assert page["settings"][0]["scores"]["psnr"]["mean"]["over_photographs"] is None
    assert page["settings"][0]["scores"]["psnr"]["mean"]["over_seeds"]


@pytest.mark.parametrize("evaluation", ["auto", "validation"])
def test_what_was_measured_otherwise_is_not_in_the_table(evaluation: str, sweep: Path) -> None:
    path = last_runs(sweep)[0] / "evaluation" / "test-0" / "per_image.json"
    found = json.loads(path.read_text())
    write(path, found | {"protocol": {"text": "Y of BT.601"}})
    config = last_runs(sweep)[0] / "config.yaml"
    write(config, config.read_text().replace("color: rgb", "color: y"))

    assert main(["report", "small", f"evaluation={evaluation}"]) == 0

    page = facts(sweep / "report.html")
    assert sum(run["scores"]["psnr"] == {} for run in page["runs"]) == 1
    assert "1 run left out, validated otherwise: Y of BT.601" in page["notes"][0]
    assert page["source"].startswith("last validation")  # also by auto, since not all have values that may be compared


@pytest.mark.slow
def test_damaged_runs_are_shown_as_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = made_up_sweep(Path("runs"), "broken", [0.1, 0.4], [[1, 2], [1, 2, 4]], steps=60)
    break_runs(folder)
    for evaluation in ("auto", "validation", "test-0"):
        assert main(["report", "broken", f"evaluation={evaluation}"]) == 0
        assert main(["stats", "broken", f"evaluation={evaluation}"]) == 0
        page = facts(folder / "report.html")
        assert len(page["runs"]) == 12
        assert page["answer"].startswith("So far (")


def test_names_with_html_in_them_stay_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = made_up_sweep(Path("runs"), "evil", [0.1], [[1]], [0, 1], steps=20)
    evil = "</script><img src=x onerror=alert(1)>"
    plan = json.loads((folder / "plan.json").read_text())
    for number, cell in enumerate(plan["cells"]):
        cell["changes"] = {f"key{evil}": f"{evil}{number}"}
        cell["name"] = f"{evil}{number}"
    write(folder / "plan.json", plan)
    assert main(["report", "evil"]) == 0
    assert evil in facts(folder / "report.html")["question"]
    assert "<img src=x" not in (folder / "report.html").read_text()


def test_secrets_do_not_reach_the_page(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    manifest = last_runs(sweep)[0] / "manifest.json"
    manifest.write_text(manifest.read_text().replace("node1", "0123456789abcdef0123"))
    assert main(["report", "small"]) == 0
    assert "0123456789abcdef0123" not in (sweep / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["report", "large"], "no sweep 'large'"),
        (["report", "small", "metric=lpips"], "metric=lpips: choose one of psnr, ssim"),
        (["report", "small", "level=95"], "level=95: give the certainty"),
        (["report", "small", "evaluation=mine"], "evaluation=mine: no run has one of that name: there are test-0, auto"),
        (["report", "small", "every_s=0"], "every_s=0"),
        (["stats", "small", "base=none"], "base=none: choose best, first, or one of lambda=0.1"),
        (["stats", "small", "./runs/demo/sweeps/small"], "several of these are"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_the_way_out(words: list[str], text: str, sweep: Path, capsys: Any) -> None:
    assert main(words) == 1
    shown = capsys.readouterr().err
    assert text in shown
    assert "Traceback" not in shown


def test_without_plotly_it_says_what_to_install(sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("jobs.report.find_spec", lambda name: None)
    assert main(["report", "small"]) == 1
    assert "pip install 'bdg[report]'" in capsys.readouterr().err


def test_the_page_is_written_anew_while_runs_go_on(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = last_runs(sweep)[0]
    write(run / "STATUS", "running\n")
    write(run / "heartbeat" / "rank_0.json", {"step": 3, "host": "elsewhere", "phase": "fit"})
    seen = []

    def sleep(seconds: float) -> None:
        seen.append(facts(sweep / "report.html")["reload_s"])
        write(run / "STATUS", "done\n")

    monkeypatch.setattr(command.time, "sleep", sleep)
    assert main(["report", "small", "watch=true", "every_s=7"]) == 0
    assert seen == [7]
    assert facts(sweep / "report.html")["reload_s"] is None


def test_ctrl_c_leaves_a_page_that_waits_for_nothing(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = last_runs(sweep)[0]
    write(run / "STATUS", "running\n")
    write(run / "heartbeat" / "rank_0.json", {"step": 3, "host": "elsewhere", "phase": "fit"})

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", interrupted)
    assert main(["report", "small", "watch=true"]) == 0
    assert facts(sweep / "report.html")["reload_s"] is None


@pytest.mark.slow
def test_ten_thousand_runs_have_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = [round(0.001 * i, 3) for i in range(1, 1001)]
    folder = made_up_sweep(Path("runs"), "huge", weights, [[1, 2]], range(10), done=0.02, per_image=False, steps=50)
    assert main(["report", "huge"]) == 0
    page = facts(folder / "report.html")
    assert (len(page["runs"]), len(page["tasks"])) == (10_000, 400)
    assert any("curves 200" in note for note in page["notes"])
    assert (folder / "report.html").stat().st_size < 15e6


def test_verbs_that_look_at_files_start_without_torch(sweep: Path) -> None:
    import subprocess

    code = "import sys; from bdg.cli import main; main(['stats', 'small']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
