"""Thresholds proposed from traffic: the share that they keep, what their intervals cover, and what is refused."""

import json
import math
import random
import shlex
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from guards.artifact.manifest import ScoreQuantiles
from guards.core.quantiles import quantile_table
from guards.core.verdict import Stage
from guards.methods.loaded import read_guards
from guards.methods.registry import CUBE, SPANS
from server.audit.chain import Link, sealed
from server.audit.prometheus import read_counts
from server.audit.proposal import propose, propose_by_quantiles, read_readings
from server.cli import main
from server.engines.events import Chunk
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, answer, guard, score
from server.errors import AuditFilesError
from server.metrics import QUANTILE_BUCKETS, Metrics
from tests.guards.samples import CALIBRATION, write
from tests.server.audit.test_served import last
from tests.server.harness import CHAT, chat, serving
from tests.server.test_metrics import at, seen

SHARE = 0.02


def test_further_prompts_keep_the_share_and_the_interval_covers() -> None:
    """Readings are uniform, so that a factor is its own share."""
    draw = random.Random(0)
    shares, covered, wrong = [], 0, 0
    for _ in range(400):
        found = propose(sorted(draw.random() for _ in range(500)), SHARE, 0.9)
        assert found.low is not None
        assert found.high is not None
        shares.append(found.factor)
        covered += found.low <= SHARE <= found.high
        wrong += found.low <= 2 * SHARE <= found.high
        assert found.hits == 9
    assert sum(shares) / len(shares) <= SHARE
    assert sum(shares) / len(shares) > 0.9 * SHARE, "and not far less"
    assert 0.88 <= covered / 400 <= 0.97, "the ranks of a binomial: a little more than promised"
    assert wrong / 400 < 0.5, "the positive control"


def test_too_few_readings_and_ones_without_room_are_refused() -> None:
    with pytest.raises(AuditFilesError, match="wanted at least 999"):
        propose([1.0] * 998, 0.001, 0.95)
    assert propose([1.0] * 999, 0.001, 0.95).low is None, "nothing bounds it from below"
    with pytest.raises(AuditFilesError, match="look like the skill"):
        propose([-1.0] * 50 + [2.0] * 50, 0.02, 0.95)


def test_a_histogram_of_quantiles_proposes_one_of_its_levels() -> None:
    draw = random.Random(1)
    quantiles = ScoreQuantiles(examples=9999, over_tau=quantile_table([1 + i / 10000 for i in range(9999)]))
    metrics = Metrics(draw=draw.uniform)
    of = replace(guard("a"), parts=("prompt",), quantiles=quantiles)
    metrics.know([of])
    over_tau = [1 + draw.random() * 1.5 for _ in range(4000)]  # further from the skill than at calibration
    for each in over_tau:
        seen(metrics, at(of, each))
    counts = {
        math.inf if each.labels["le"] == "+Inf" else float(each.labels["le"]): each.value
        for family in metrics.registry.collect()
        for each in family.samples
        if each.name == "skillguard_score_quantile_bucket"
    }
    assert set(QUANTILE_BUCKETS) < set(counts)
    found = propose_by_quantiles(counts, quantiles, SHARE, 0.95)
    finer = propose(sorted(over_tau), SHARE, 0.95)
    assert found.factor == pytest.approx(1.02, abs=1e-3), "the level .02, where 4,000 * .02 / 1.5 lie"
    assert found.hits == sum(each <= found.factor for each in over_tau)
    assert found.factor <= finer.factor
    assert found.low is not None
    assert found.high is not None
    assert found.low <= finer.factor <= found.high
    assert found.before == counts[0.001], "up to these: tau lies below the first level"
    with pytest.raises(AuditFilesError, match="below what is told"):
        propose_by_quantiles(counts, quantiles.model_copy(update={"examples": 20}), SHARE, 0.95)


@pytest.mark.anyio
async def test_from_what_a_server_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores of a shadowed guard, served, recorded, read back."""
    of = guard("demo")
    scripts = []
    for index in range(60):
        read = replace(score(of), score=0.5 * (1.01 + index / 100))
        finish = replace(last(answer("a")), prompt_scores=(read,))
        scripts.append(Script((Chunk("a", 1), finish), when=lambda text, index=index: f"[{index}]" in text))  # type: ignore[misc]
    async with serving(ScriptedEngine(scripts), audit_dir=tmp_path, audit_scores=("demo",), shadow=("demo",)) as served:
        for index in range(60):
            assert (await served.post(CHAT, chat(f"[{index}]"))).status_code == 200
    command = ["propose-tau", str(tmp_path), "--guard", "demo", "--share", "0.05", "--json"]
    assert main(command) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["prompts"] == 60
    assert (shown["fire_now"], shown["would_fire"]) == (0, 2)
    assert shown["factor"] == pytest.approx(1.03), "below the third of 60, since floor(61 * .05) is 3"
    assert shown["taus"] == {"cube 0": {"now": 0.5, "proposed": pytest.approx(0.515)}}
    assert main(command[:-1]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert main([*command, "--since", "2999-01-01"]) == 1
    assert "no readings" in capsys.readouterr().err
    an_hour_ago, in_an_hour = (datetime.now(timezone(timedelta(hours=14))) + timedelta(hours=by) for by in (-1, 1))
    assert main([*command, "--since", an_hour_ago.isoformat()]) == 0, "another zone's words, which sort later"
    assert main([*command, "--since", in_an_hour.isoformat()]) == 1
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*command, "--since", "yesterday"])
    assert "--since: invalid" in capsys.readouterr().err
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"shadow", b"shadok", 1))
    assert main(command) == 1
    assert "audit verify" in capsys.readouterr().err


def reading(**changes: Any) -> dict[str, Any]:
    usual = {"kind": "score", "guard": "a", "digest": "1", "part": "p", "score": 1.0, "tau": 0.5, "time": "2026-11-01"}
    return {**usual, **changes}


def test_readings_of_other_artifacts_and_taus_are_left_out() -> None:
    late = {"kind": "shadow_hit", "guard": "a", "stage": "generation"}
    found = read_readings(
        [
            *(reading(digest="0"), reading(tau=0.4), reading(guard="b"), late, reading(score=None)),
            *(reading(score=2.0), reading(), reading(part="q", tau=2.0)),
        ],
        "a",
    )
    assert (found.digest, found.taus) == ("1", {"p": 0.5, "q": 2.0})
    assert list(found.over_tau) == [0.5, 2.0, 4.0]
    assert (found.other, found.answers) == (2, 1)


def test_what_held_last_is_known_by_time() -> None:
    """Of two pods, whose files come one after the other: the longer log's is not the later artifact."""
    early, late = (
        [reading(digest=digest, tau=tau, time=f"2026-11-0{day}T08:00:00.000000Z")] * 2
        for digest, tau, day in (("old", 0.5, 1), ("new", 0.25, 2))
    )
    for records in (early + late, late + early):
        found = read_readings(records, "a")
        assert (found.digest, found.taus, found.other) == ("new", {"p": 0.25}, 2)


@pytest.fixture
def answering() -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """An address that answers what it is told to, as Prometheus' API would, and what it was asked."""
    body: dict[str, Any] = {}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", body, asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_counts_of_a_prometheus(answering: tuple[str, dict[str, Any], list[str]]) -> None:
    address, body, asked = answering
    rows = [{"metric": {"le": le}, "value": [1.0, count]} for le, count in (("0.1", "3.2"), ("+Inf", "10"))]
    body |= {"status": "success", "data": {"resultType": "vector", "result": rows}}
    assert read_counts(address, "a", "7d") == {0.1: 3.2, math.inf: 10.0}
    assert "increase" in asked[0]
    body["data"]["result"] = []
    with pytest.raises(AuditFilesError, match="holds no quantiles"):
        read_counts(address, "a", "7d")
    body["status"], body["error"] = "error", "bad window"
    with pytest.raises(AuditFilesError, match="bad window"):
        read_counts(address, "a", "odd")
    body.clear()
    with pytest.raises(AuditFilesError, match="no answer of Prometheus"):
        read_counts(address, "a", "7d")


def test_taus_of_answers_stay_and_the_command_says_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A guard over spans has parts for prompts and one for answers, and takes a tau for each."""
    table = ScoreQuantiles(examples=999, over_tau=quantile_table([1 + i / 1000 for i in range(999)]))
    folder = write(tmp_path / "spans", SPANS, calibration=CALIBRATION.model_copy(update={"quantiles": table}))
    (loaded,) = read_guards([folder], verifiable=False).values()
    parts, own = loaded.bound.parts, loaded.bound.taus
    of_answers = [index for index, part in enumerate(parts) if not part.reads(Stage.PROMPT)]
    assert 0 < len(of_answers) < len(parts), "the positive control"
    text = tmp_path / "metrics.txt"
    rows = [(level, int(level * 1000)) for level in QUANTILE_BUCKETS] + [("+Inf", 1000)]
    text.write_text(
        "# TYPE skillguard_score_quantile histogram\n"
        + "".join(f'skillguard_score_quantile_bucket{{guard="s p",le="{le}"}} {count}\n' for le, count in rows)
    )
    command = ["propose-tau", "--guard", "s p", "--share", "0.05", "--prometheus", str(text)]
    assert main([*command, "--artifact", str(folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown["taus"]) == [part.label for index, part in enumerate(parts) if index not in of_answers]
    words = shlex.split(shown["command"])
    assert words[:5] == ["skillguard", "guards", "set-tau", "s p", "--taus"]
    wanted = [tau if index in of_answers else tau * shown["factor"] for index, tau in enumerate(own)]
    assert [float(word) for word in words[5:]] == wanted
    assert main([*command, "--artifact", str(folder)]) == 0
    assert shown["command"] in capsys.readouterr().out

    first = next(index for index in range(len(parts)) if index not in of_answers)
    digest = loaded.artifact.digest
    files = ["propose-tau", str(audited(tmp_path / "own", digest, parts[first].label, own[first])), "--guard", "s"]
    files += ["--share", "0.05", "--json"]
    assert main(files) == 0
    assert json.loads(capsys.readouterr().out)["command"] is None
    assert main([*files, "--artifact", str(folder)]) == 0
    shown = json.loads(capsys.readouterr().out)
    taus = [float(word) for word in shlex.split(shown["command"])[5:]]
    assert taus[first] == own[first] * shown["factor"]
    assert [taus[index] for index in of_answers] == [own[index] for index in of_answers]
    assert main([*files, "--artifact", str(write(tmp_path / "other", CUBE))]) == 1
    assert "name the one that was served" in capsys.readouterr().err
    files[1] = str(audited(tmp_path / "moved", digest, parts[first].label, own[first] / 2))
    assert main([*files, "--artifact", str(folder)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["command"] is None, "it would set everybody's taus by one tenant's"
    assert shown["taus"] == {parts[first].label: {"now": own[first] / 2, "proposed": own[first] / 2 * shown["factor"]}}


def audited(folder: Path, digest: str, part: str, tau: float) -> Path:
    """Forty readings of a guard by one tau."""
    folder.mkdir()
    link = Link()
    with (folder / "audit-000000000000.jsonl").open("wb") as file:
        for index in range(40):
            score = tau * (1.6 + index / 12)
            line, link = sealed(link, reading(guard="s", digest=digest, part=part, tau=tau, score=score))
            file.write(line)
    return folder


def test_the_command_on_a_text_of_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = ScoreQuantiles(examples=999, over_tau=quantile_table([1 + i / 1000 for i in range(999)]))
    folder = write(tmp_path / "sums", CUBE, calibration=CALIBRATION.model_copy(update={"quantiles": table}))
    counts = "".join(
        f'skillguard_score_quantile_bucket{{guard="sums",le="{le}"}} {count}\n'
        for le, count in [(level, int(level * 1000)) for level in QUANTILE_BUCKETS] + [("+Inf", 1000)]
    )
    text = tmp_path / "metrics.txt"
    text.write_text(f"# TYPE skillguard_score_quantile histogram\n{counts}")
    command = ["propose-tau", "--guard", "sums", "--share", "0.05", "--prometheus", str(text)]
    assert main([*command, "--artifact", str(folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["prompts"], shown["would_fire"]) == (1000, 20), "50 fires of 1,000 would be just too many"
    assert main([*command, "--artifact", str(write(tmp_path / "old", CUBE))]) == 1
    assert "calibrate it again" in capsys.readouterr().err
    assert main(command) == 1
    assert main([*command, "--artifact", str(folder), "--share", "2"]) == 1
    assert main(["propose-tau", "--guard", "sums", "--share", "0.05"]) == 1
