"""Progress over steps: log lines where nobody watches, a bar on a terminal."""

import io
import logging

import pytest
from rich.console import Console

from fengwu_ghr import console
from fengwu_ghr.console import LeadProgress, StepProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that passes, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(console, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(console, "ERR", Console(file=io.StringIO(), stderr=True))
    caplog.set_level(logging.INFO, logger="fengwu_ghr")
    return caplog


def test_without_a_terminal_lines_come_now_and_then(
    clock: list[float], log: pytest.LogCaptureFixture
) -> None:
    with StepProgress(quiet=False, log_seconds=20) as progress:
        progress.note("a note")
        progress.begin("train", 10, 100)
        for done in range(11, 101):
            clock[0] += 1.0
            progress.stepped(done, {"loss": 0.123456})
    assert log.messages[0] == "a note"
    assert log.messages[1] == "train: 11 of 100 (loss 0.1235, 1.0 s each, 89 s to go)"
    assert [message.split(" (")[0] for message in log.messages[2:]] == [
        f"train: {done} of 100" for done in (32, 53, 74, 95, 100)
    ]
    assert "0.0 s to go" in log.messages[-1]


def test_steps_of_an_earlier_run_took_no_time_in_this_one(
    clock: list[float], log: pytest.LogCaptureFixture
) -> None:
    progress = StepProgress(quiet=False, log_seconds=0)
    progress.begin("score", 90, 100)
    clock[0] += 60
    progress.stepped(92, {})
    assert log.messages == ["score: 92 of 100 (30 s each, 0:04:00 to go)"]


def test_on_a_terminal_there_is_one_bar_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(console, "ERR", terminal)
    with StepProgress(quiet=False) as progress:
        progress.begin("first", 0, 5)
        progress.stepped(5, {"loss": 0.5})
        progress.note("between [brackets]")
        progress.begin("second", 2, 4)
        progress.stepped(3, {})
    shown = screen.getvalue()
    assert "first" in shown
    assert "5/5" in shown
    assert "loss 0.5" in shown
    assert "between [brackets]" in shown
    assert "3/4" in shown
    assert shown.index("5/5") < shown.index("3/4")


def test_quiet_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "ERR", Console(file=screen, force_terminal=True, width=100))
    with StepProgress(quiet=True) as progress:
        progress.begin("train", 0, 2)
        progress.stepped(1, {})
    assert screen.getvalue() == ""


def test_a_forecast_logs_every_lead(clock: list[float], log: pytest.LogCaptureFixture) -> None:
    from datetime import timedelta

    with LeadProgress(quiet=False) as progress:
        progress.begin(0, 2)
        for step in (1, 2):
            clock[0] += 2
            progress.stepped(step, timedelta(hours=6 * step))
    assert log.messages == [
        "forecast: 1 of 2 (+6 h, 2.0 s each, 2.0 s to go)",
        "forecast: 2 of 2 (+12 h, 2.0 s each, 0.0 s to go)",
    ]
