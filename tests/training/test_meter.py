"""What is logged: means and rates, by a clock that the test sets."""

from types import SimpleNamespace

import pytest

from cgd.training import meter


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(meter, "time", SimpleNamespace(time=lambda: now.seconds))
    return now


def test_a_log_line_has_the_means_of_its_steps_and_the_rates_of_its_time(clock):
    def batches():
        for _ in range(3):
            clock.seconds += 2  # waiting for data
            yield "batch"

    found = meter.Meter()
    for step, _ in enumerate(found.timed(batches())):
        clock.seconds += 3
        found.add({"loss": (1, 2, 6)[step], **({"gradient_norm": 7} if step == 2 else {})}, images=(8, 8, 4)[step])
    # 15 s, of which 6 waiting, for 20 images
    assert found.take() == pytest.approx(
        {"loss": 3, "gradient_norm": 7, "images_per_second": 20 / 15, "data_time": 6 / 15}
    )
    clock.seconds += 4
    found.add({"loss": 5}, images=2)  # nothing is left of the line before
    assert found.take() == pytest.approx({"loss": 5, "images_per_second": 2 / 4, "data_time": 0})


def test_a_restarted_clock_keeps_the_figures(clock):
    found = meter.Meter()
    found.add({"loss": 1}, images=100)
    clock.seconds += 50  # an evaluation
    found.restart_clock()
    clock.seconds += 2
    found.add({"loss": 3}, images=8)
    assert found.take() == pytest.approx({"loss": 2, "images_per_second": 4, "data_time": 0})
