"""`sarm-ray bench serve` on the real server with a few robots for two seconds: what must hold of counts; none is timed."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from sarm_ray.bench.live_floor import Floor
from sarm_ray.bench.live_memory import SessionMemory
from sarm_ray.bench.live_outcome import Answer, Outcome, Tally, sum_up
from sarm_ray.bench.live_processes import part_of
from sarm_ray.bench.live_report import ServeBench, describe
from sarm_ray.bench.live_search import find_largest
from sarm_ray.bench.measure import Hardware
from sarm_ray.bench.serve import Bed, Setting
from sarm_ray.cli import main
from sarm_ray.errors import ConfigError

RUNS = ("half", "ping", "double", "recovered")


def check_counts(outcome: Outcome) -> None:
    """Every frame is accounted for."""
    assert outcome.num_due == outcome.num_sent + outcome.num_unsent
    assert outcome.num_sent == outcome.num_scored + outcome.num_dropped + outcome.num_skipped
    assert (outcome.num_lost, outcome.num_refused, outcome.num_broken, outcome.num_failed) == (0, 0, 0, 0)
    assert outcome.first_error is None
    if outcome.latency_ms is not None:  # on a machine that stands still nothing may come before the end
        assert 0 < outcome.latency_ms["p50"] <= outcome.latency_ms["p99"] <= outcome.latency_ms["max"]


@pytest.mark.slow
def test_the_figures_of_a_running_server_fit_together():
    options = ["--sessions", "2", "--hz", "5", "--duration-s", "2", "--memory-sessions", "3", "--hidden-dim", "24"]
    command = [sys.executable, "-m", "sarm_ray", "bench", "serve", *options, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    bench = ServeBench(
        **{
            **found,
            **{name: Outcome(**found[name]) for name in RUNS},
            "floors": [Floor(**floor) for floor in found["floors"]],
            "memory": SessionMemory(**found["memory"]),
            "hardware": Hardware(**found["hardware"]),
        }
    )
    assert (bench.sessions, bench.hz, bench.duration_s, bench.num_replicas, bench.trials) == (2, 5, 2, 1, [])
    assert (bench.encoder, bench.device, bench.healthy) == ("efficientnet-lite0", bench.device, True)
    for name, sessions, seconds in (("half", 1, 2), ("ping", 1, 2), ("double", 4, 2), ("recovered", 1, 2)):
        outcome = getattr(bench, name)
        check_counts(outcome)
        assert (outcome.sessions, outcome.num_due) == (sessions, sessions * 5 * seconds)
    assert set(bench.half.phases_ms) == {"queue", "decode", "encode", "score", "total"}
    assert bench.ping.phases_ms == {}
    # what a robot sees is more than what the server counts
    assert bench.half.phases_ms["total"]["p50"] < bench.half.latency_ms["p50"]
    assert (bench.p50_ms, bench.p99_ms) == (bench.half.latency_ms["p50"], bench.half.latency_ms["p99"])
    assert bench.floor_ms == bench.floors[0].encode_ms + bench.floors[0].score_ms
    assert bench.latency_ratio == pytest.approx((bench.ping_ms + bench.floor_ms) / bench.p50_ms)
    assert {"ingress", "encoder", "scorer", "proxy", "ray"} <= set(bench.cpu_ms)
    assert bench.frames_per_cpu_s == pytest.approx(1000 / sum(bench.cpu_ms.values()))
    assert bench.floor_ratio == pytest.approx(bench.frames_per_cpu_s / bench.floor_frames_per_cpu_s)
    assert bench.dropped == bench.double.num_dropped / 4
    assert bench.memory.sessions == 3
    assert bench.memory.frames_each >= 4.5 * 5  # the model looks 4 s back, and half a gap
    assert bench.memory.counted_kb["10"] > bench.memory.counted_kb["1"] > 100
    check_text(bench)


def check_text(bench: ServeBench) -> None:
    """People read what programs do."""
    text = describe(bench)
    half, double = bench.half, bench.double
    wanted = (
        "2 sessions x 5 Hz without loss", f"{bench.hardware.cores} cores", f"p50 {bench.p50_ms:.1f}",
        f"p99 {bench.p99_ms:.1f} ms", f"{half.num_sent} sent, {half.num_scored} scored, 0 dropped, 0 lost",
        f"ping of an empty deployment: p50 {bench.ping_ms:.1f}", f"encode {bench.floors[0].encode_ms:.1f}",
        f"ratio {bench.latency_ratio:.2f}", f"ratio {bench.floor_ratio:.2f}",
        f"dropped {double.num_dropped} of {double.num_sent}", "ready after", "3 idle sessions",
        f"{bench.memory.ingress_kb:.0f} kB a session",
    )  # fmt: skip
    for words in wanted:
        assert words in text


def test_the_engine_alone():
    arguments = ["bench", "serve", "--engine", "--sessions", "3", "--duration-s", "1", "--hidden-dim", "24"]
    result = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    bench = json.loads(result.stdout)
    assert [(run["sessions"], run["mode"]) for run in bench["runs"]] == [(3, "full"), (3, "paced")]
    for run in bench["runs"]:
        assert run["frames_per_s"] > 0
        assert 1 <= run["mean_batch"] <= 8
        assert run["latency_ms"]["p50"] <= run["latency_ms"]["p99"]
    assert bench["runs"][0]["num_dropped"] == 0  # a frame that follows an answer finds nothing in its way


def answered(times_s: list[float]) -> list[Answer]:
    timings_ms = {"queue": 0.0, "decode": 1.0, "score": 2.0, "total": 5.0}
    return [Answer(time_s, 0.010, {"encode": time_s, **timings_ms}) for time_s in times_s]


def test_sums():
    counts = {"received": 5, "scored": 3, "dropped": 1, "skipped": 1}
    one = Tally(num_due=6, num_unsent=1, num_sent=5, counts=counts, closed=True, late_s=[0.001])
    one.answers = answered([0.5, 1.5, 2.5])
    other = Tally(num_due=3, num_sent=3, num_refused=1, first_error="bad_image: no")
    other.answers = answered([1.5])
    total = sum_up([one, other], sessions=2, hz=1.0, begin_s=1.0, end_s=3.0, load_cores=0.5)
    assert (total.num_due, total.num_unsent, total.num_sent, total.num_scored) == (9, 1, 8, 4)
    assert (total.num_dropped, total.num_skipped, total.num_refused) == (1, 1, 1)
    assert (total.num_lost, total.num_broken, total.first_error) == (1, 1, "bad_image: no")
    assert total.dropped_per_session == {"least": 0, "mean": 0.5, "most": 1}
    assert (total.frames_per_s, total.achieved, total.held) == (1.5, 0.75, False)  # three answers in two seconds
    assert total.latency_ms == pytest.approx({"p50": 10, "p90": 10, "p99": 10, "max": 10})
    assert total.mean_batch == 1.5  # two of the three had the same timings: they went together
    whole = Tally(num_due=2, num_sent=2, closed=True, answers=answered([1.5, 2.5]))
    assert sum_up([whole], 1, 1.0, 1.0, 3.0, 0.5).held


def test_a_load_without_answers_has_no_latency():
    silent = sum_up([Tally(num_due=1, num_sent=1)], 1, 1.0, 0.0, 1.0, 0.1)
    assert (silent.latency_ms, silent.mean_batch, silent.num_lost, silent.held) == (None, None, 1, False)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 20, 33, 100, 1000])
@pytest.mark.parametrize("start", [1, 2, 30, 5000])
def test_the_search_finds_the_limit(limit, start):
    asked: list[int] = []

    def holds(number: int) -> bool:
        asked.append(number)
        return number <= limit

    found = find_largest(holds, start)
    assert limit - max(1, 0.05 * limit) <= found <= limit
    assert len(set(asked)) == len(asked) <= 24


def test_a_load_that_is_not_carried_for_long_is_not_the_largest(monkeypatch):
    bed = Bed(Setting(trial_s=1.0), *[None] * 6)
    spans = []

    def run(self, sessions, duration_s, prefix=""):
        spans.append(duration_s)
        carried = sessions <= (40 if duration_s == 1.0 else 36)
        answers = answered([0.5] * 10 * sessions)
        tally = Tally(num_due=len(answers), num_sent=len(answers) + (not carried), closed=True, answers=answers)
        tally.counts["dropped"] = 0 if carried else 1
        return sum_up([tally], sessions, 10.0, 0.0, 1.0, 0.0)

    monkeypatch.setattr(Bed, "run", run)
    assert 34 <= bed.find_largest(10) <= 36
    assert spans[-1] == 3.0
    assert {trial["held"] for trial in bed.trials} == {0.0, 1.0}
    monkeypatch.setattr(Bed, "holds", lambda _, sessions, duration_s=0: sessions <= 40 and not duration_s)
    with pytest.raises(
        ConfigError, match="40 sessions were carried for 1 s, and not half as many for 3 s: the machine is"
    ):
        bed.find_largest(10)
    monkeypatch.setattr(Bed, "holds", lambda *_: False)
    with pytest.raises(ConfigError, match="not even one session at 10 Hz is carried; lower --hz"):
        bed.find_largest(10)


def test_the_parts_of_a_server_by_their_titles():
    titles = {
        "ray::ServeReplica:sarm_ray:Live": "ingress",
        "ray::ServeReplica:sarm_ray:Encoder.encode": "encoder",
        "ray::ServeReplica:sarm_ray:Scorer": "scorer",
        "ray::ProxyActor": "proxy",
        "ray::ServeController": "ray",
        "/usr/lib/raylet --x": "ray",
        "ray::ServeReplica:other:Thing": "ray",
    }
    assert {title: part_of(title) for title in titles} == titles
