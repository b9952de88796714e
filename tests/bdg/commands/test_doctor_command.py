import json
from pathlib import Path

import pytest
from PIL import Image

from bdg.cli import main
from datamodules.images import decode

PHOTOGRAPHS = Path(__file__).parents[3] / "datamodules" / "photographs"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train and test with three clean images each; the last of one is that of the other."""
    root = tmp_path_factory.mktemp("sets")
    names = ("astronaut", "bridge", "cat", "clock", "coffee", "cat")
    for i, name in enumerate(names):
        path = root / ("train" if i < 3 else "test") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(decode((PHOTOGRAPHS / f"{name}.jpg").read_bytes())[:300, :300]).save(path)
    return root


def doctor(*words: object) -> int:
    return main(["doctor", "workers=2", *map(str, words)])


def test_a_clean_set_exits_with_0_and_shows_what_it_holds(sets, tmp_path, capsys):
    assert doctor(sets / "train", "strict=true", f"json={tmp_path}/report.json") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    (row,) = report["sets"]
    assert (row["images"], row["largest"], report["findings"]) == (3, [300, 300], [])
    assert row["texture"]["entropy"]["mean"] > 0
    said = capsys.readouterr().out
    assert "300x300" in said
    assert f"{row['texture']['entropy']['mean']:.2f}" in said


def test_sets_named_one_after_another_are_compared_and_a_leak_fails_only_when_strict(sets, tmp_path, capsys):
    assert doctor(sets / "train", sets / "test", "glcm=none", f"json={tmp_path}/report.json") == 0
    (finding,) = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert (finding["severity"], finding["what"]) == ("warning", "leak")
    assert finding["where"] == ["2.png shows the same as 5.png (likeness 1.00)"]
    assert "2.png shows the same as 5.png" in capsys.readouterr().out
    assert doctor(sets / "train", sets / "test", "glcm=none", "strict=true") == 1
    assert "0 kinds of errors and 1 of warnings" in capsys.readouterr().err


def test_sets_to_compare_with_are_not_examined_themselves(sets, tmp_path):
    assert doctor(sets / "test", f"against={sets}/train", "glcm=none", f"json={tmp_path}/report.json") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["set"] for row in report["sets"]] == [str(sets / "test")]
    assert [finding["what"] for finding in report["findings"]] == ["leak"]


def test_errors_fail_and_long_lists_are_cut(sets, tmp_path, capsys):
    for i in range(4):
        (tmp_path / f"[{i}].png").write_text("no image")
    assert doctor(tmp_path, "show=3") == 1
    said, failed = capsys.readouterr()
    assert all(f"[{i}].png" in said for i in range(3))
    assert "[3].png" not in said
    assert "and 1 more" in said
    assert "1 kinds of errors" in failed


def test_shards_that_a_shell_has_listed_are_one_set(sets, tmp_path, capsys):
    assert main(["pack", f"{sets}/train", f"{tmp_path}/packed", "shard_size=1"]) == 0
    assert doctor(*sorted((tmp_path / "packed").glob("*.tar")), "glcm=none", f"json={tmp_path}/report.json") == 0
    (row,) = json.loads((tmp_path / "report.json").read_text())["sets"]
    assert (row["set"], row["images"]) == (f"{tmp_path}/packed/train", 3)


def test_any_number_of_workers_reports_the_same(sets, tmp_path):
    reports = []
    for workers in (1, 4):
        assert main(["doctor", f"{sets}/train", f"workers={workers}", f"json={tmp_path}/{workers}.json"]) == 0
        reports.append((tmp_path / f"{workers}.json").read_text())
    assert reports[0] == reports[1]


def test_the_packaged_photographs_are_without_fault(capsys):
    assert doctor("pkg://datamodules/photographs", "glcm=none", "strict=true") == 0
    said = capsys.readouterr().out
    assert not any(severity in said for severity in ("error:", "warning:", "note:"))


def test_a_source_that_is_not_there_is_named(capsys):
    assert doctor("nowhere") == 1
    assert "source=nowhere: no such folder" in capsys.readouterr().err


def test_a_likeness_that_strangers_have_is_refused(sets, capsys):
    assert doctor(sets / "train", "alike=0.2") == 1
    assert "alike=0.2: give a likeness from 0.5 to 1" in capsys.readouterr().err
