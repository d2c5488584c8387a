"""Device peaks, speeds, the plateau note and the log."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.screen import Screen
from tests.train.tiny_run import make_trainer
from train import metrics


def test_peaks() -> None:
    assert metrics.device_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert metrics.device_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert metrics.device_peak("NVIDIA H200") == 989e12
    assert metrics.device_peak("Some other card") is None


def test_speeds_are_means_over_the_window() -> None:
    speed = metrics.Speed()
    for _ in range(3 * metrics.SPEED_WINDOW):
        speed.add(100.0, 1, 1, 1.0)
    for _ in range(metrics.SPEED_WINDOW):
        speed.add(0.5, 100, 4, 1e9)
    assert speed.rates() == pytest.approx((200.0, 8.0, 2e9, 0.5))


def test_plateau_is_said_once_and_only_when_the_loss_stays() -> None:
    falling = metrics.Plateau(1000)
    assert not any(falling.add(10.0 * 0.99**step) for step in range(1000))
    flat = metrics.Plateau(1000)
    said = [step for step in range(1000) if flat.add(max(0.5, 10.0 - 0.1 * step))]
    # The fall ends at step 95; one whole window of 100 after it equals the next from step 295 on.
    assert len(said) == 1 and 195 <= said[0] <= 300


def test_log_lines(world, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trainer = make_trainer(tmp_path, world, steps=5, log_every=2, save_every=2)
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        assert line["lr"] == pytest.approx(1e-2 * (1 - (line["step"] - 1) / 5))
        assert line["examples"] == 8 and line["tokens_per_second"] > 0 and line["memory_gib"] > 0
        assert 0 < line["label_tokens"] < line["real_tokens"] <= line["computed_tokens"]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in printed] == ["1/5", "2/5", "4/5", "5/5"]
    for part in ("loss", "lr", "grad norm", "tokens/s", "examples/s", "GiB", "left"):
        assert part in printed[0]


def test_a_terminal_gets_a_bar_and_a_line_below_it(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "70")
    make_trainer(tmp_path, world, steps=5, log_every=2).run()
    shown, lines = screen.getvalue(), screen.lines()
    assert any("━" in line and "5/5 0:" in line for line in lines), "a bar, and how many steps are done"
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/5", "2/5", "4/5", "5/5"], "to scroll back to"
    assert all("grad norm" in line and len(line) <= 70 for line in steps), "only what fits"
    assert max(i for i, line in enumerate(lines) if "━" in line) > lines.index(steps[-1]), "the bar is below them"
    for part in ("loss", "lr", "grad norm", "tokens/s", "examples/s", "GiB", "0:00 left"):
        assert part in shown, f"{part}: the line is longer than the terminal is wide"


def test_tensorboard(world, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make_trainer(tmp_path, world, steps=2, tensorboard=True).run()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2]


def test_durations() -> None:
    assert [metrics.duration(s) for s in (0, 61, 3661)] == ["0:00", "1:01", "1:01:01"]
