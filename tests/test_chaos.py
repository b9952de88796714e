"""A training of two processes that is killed in eight ways ends as the unbroken one; benchmarks/chaos.py with fewer faults."""

from pathlib import Path

import chaos
import pytest


@pytest.mark.slow
def test_a_training_survives_eight_faults_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("sys.argv", ["benchmarks/chaos.py"])

    status = chaos.main(["--faults", "8", "--folder", str(tmp_path)])

    table = capsys.readouterr().out
    assert status == 0, table
    assert "final averaged weights equal" in table
