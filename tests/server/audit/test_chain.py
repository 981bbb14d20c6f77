"""What an audit log's chain shows, and what it cannot."""

import hashlib
import json
import os
import random
from pathlib import Path

import pytest

from server.audit.chain import NOTHING, BrokenLineError, Link, parsed, sealed
from server.audit.folder import AuditFolder, file_name
from server.audit.verify import Report, verify
from server.cli import main
from server.errors import AuditFilesError, ConfigError

LINES = 40


def records(count: int) -> list[dict[str, object]]:
    return [{"kind": "shadow_hit", "guard": f"ksd-{index}", "score": index / 7} for index in range(count)]


def written(path: Path, count: int = LINES, max_bytes: int = 1500) -> Link:
    """A log of several files, one append for each record."""
    folder = AuditFolder(path, max_bytes, fsync=False)
    for each in records(count):
        folder.append([each])
    folder.close()
    return folder.link


@pytest.fixture
def log(tmp_path: Path) -> Path:
    written(tmp_path)
    assert len(list(tmp_path.iterdir())) > 3
    return tmp_path


def files(log: Path) -> list[Path]:
    return sorted(log.iterdir())


def broken(log: Path) -> Report:
    report = verify([log])
    assert report.problems, "nothing was found"
    return report


def test_a_log_as_it_was_written_is_whole(log: Path) -> None:
    report = verify([log])
    assert (report.problems, report.lines, report.files, report.first) == ([], LINES, len(files(log)), 0)
    lines = b"".join(path.read_bytes() for path in files(log)).splitlines()
    told = [json.loads(line) for line in lines]
    assert [each["guard"] for each in told] == [f"ksd-{index}" for index in range(LINES)]
    assert [each["previous"] for each in told] == [NOTHING, *(each["hash"] for each in told[:-1])]
    assert told[-1]["hash"] == report.last.head
    assert verify(list(reversed(files(log)))).problems == [], "files may be named in any order"


def test_a_flipped_byte_is_found_wherever_it_is(log: Path) -> None:
    draw = random.Random(0)
    for path in files(log):
        good = path.read_bytes()
        for at in [0, 1, len(good) - 1, len(good) - 2, *(draw.randrange(len(good)) for _ in range(12))]:
            bad = bytearray(good)
            bad[at] ^= 1 << draw.randrange(8)
            path.write_bytes(bad)
            assert path.name in broken(log).problems[0]
        path.write_bytes(good)
    assert verify([log]).problems == []


def test_a_removed_a_moved_and_an_added_line_are_found(log: Path) -> None:
    path = files(log)[1]
    good = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(good[:1] + good[2:]))
    assert "are missing" in broken(log).problems[0]
    path.write_bytes(b"".join([good[1], good[0], *good[2:]]))
    assert broken(log).problems
    path.write_bytes(b"".join([*good[:2], good[1], *good[2:]]))
    assert "belongs" in broken(log).problems[0]


def test_a_line_that_was_replaced_by_another_sealed_one_is_found(log: Path) -> None:
    """Its own hash is right: only the line behind it shows it."""
    path = files(log)[1]
    lines = path.read_bytes().splitlines(keepends=True)
    told = parsed(lines[0][:-1])
    lines[0], _ = sealed(Link(told.number, told.previous), {"kind": "shadow_hit", "guard": "another"})
    path.write_bytes(b"".join(lines))
    (problem,) = broken(log).problems
    assert "line 2" in problem
    assert "replaced" in problem


def test_a_missing_file_is_found(log: Path) -> None:
    for path in files(log)[:-1]:
        good = path.read_bytes()
        path.unlink()
        assert "missing" in broken(log).problems[0]
        path.write_bytes(good)


def test_an_end_that_was_cut_off_shows_against_a_noted_hash_alone(log: Path) -> None:
    head = verify([log]).last.head
    assert verify([log], noted=head).noted == LINES - 1
    path = files(log)[-1]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert verify([log]).problems == [], "a chain cannot show it"
    assert "cut off" in verify([log], noted=head).problems[0]
    path.write_bytes(b"".join(lines)[:-9])
    assert "not finished" in broken(log).problems[0]


def test_older_files_that_were_put_away(log: Path) -> None:
    older = files(log)[0]
    head = verify([older]).last.head
    older.unlink()
    assert verify([log], after=head).problems == []
    assert "missing" in verify([log]).problems[0]


def test_the_chain_goes_on_over_restarts(log: Path) -> None:
    before = verify([log]).last
    assert written(log, count=3).lines == LINES + 3
    report = verify([log], noted=before.head)
    assert (report.problems, report.lines, report.noted) == ([], LINES + 3, LINES - 1)


def test_a_line_that_was_never_finished_is_cut_at_the_start(log: Path) -> None:
    with files(log)[-1].open("ab") as file:
        file.write(b'{"number":40,"previous"')
    folder = AuditFolder(log, 1500, fsync=True)
    assert (folder.cut_bytes, folder.link.lines) == (23, LINES)
    folder.append(records(1))
    folder.close()
    assert verify([log]).problems == []


def test_an_empty_file_at_the_end_is_begun_again(log: Path) -> None:
    (log / file_name(LINES)).touch()
    assert written(log, count=1).lines == LINES + 1
    assert verify([log]).problems == []


def test_a_damaged_end_stops_the_start(log: Path) -> None:
    path = files(log)[-1]
    path.write_bytes(path.read_bytes().replace(b"shadow", b"shadok"))
    with pytest.raises(ConfigError, match="was changed"):
        AuditFolder(log, 1500, fsync=False)


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    first = AuditFolder(tmp_path, 1500, fsync=False)
    with pytest.raises(ConfigError, match="another process"):
        AuditFolder(tmp_path, 1500, fsync=False)
    first.close()
    AuditFolder(tmp_path, 1500, fsync=False).close()


def test_a_folder_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make the folder"):
        AuditFolder(tmp_path / "not", 1500, fsync=False)


def test_a_file_that_was_taken_away_is_missed(log: Path) -> None:
    folder = AuditFolder(log, 1 << 20, fsync=False)
    files(log)[-1].unlink()
    folder.append(records(1))
    folder.close()
    assert "are missing" in broken(log).problems[0]


def test_a_folder_that_was_taken_away_is_an_error_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.mkdir()
    folder = AuditFolder(path, 1 << 20, fsync=False)
    path.rename(tmp_path / "away")
    with pytest.raises(OSError, match="No such file"):
        folder.append(records(1))
    path.mkdir()
    with pytest.raises(OSError, match="no longer the one"):
        folder.append(records(1))
    path.rmdir()
    (tmp_path / "away").rename(path)
    folder.append(records(1))
    folder.close()
    assert verify([path]).problems == []


def test_a_write_that_ends_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that is full: some of it is taken, and then no more."""
    folder = AuditFolder(tmp_path, 1 << 20, fsync=False)
    folder.append(records(1))
    (path,) = files(tmp_path)
    real = os.write
    seen: list[bytes] = []

    def write(file: int, data: bytes) -> int:
        if seen:
            raise OSError(28, "No space left on device")
        taken = real(file, data[:10])
        seen.append(path.read_bytes())
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space"):
            folder.append(records(2))
    assert not seen[0].endswith(b"\n"), "the positive control: half a line was there"
    assert path.read_bytes().count(b"\n") == 1
    folder.append(records(1))
    folder.close()
    report = verify([tmp_path])
    assert (report.problems, report.lines) == ([], 2)


def test_what_is_no_record() -> None:
    for body in (b"{}", b"[1]", b'{"number":true,"previous":""}', b'{"number":-1,"previous":""}', b'{"number":1}'):
        line = body[:-1] + b',"hash":"' + hashlib.sha256(body).hexdigest().encode() + b'"}'
        with pytest.raises(BrokenLineError):
            parsed(line)
    line, link = sealed(Link(), {})
    assert parsed(line[:-1]).link == link, "the positive control"


def test_the_command(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = verify([log]).last.head
    assert main(["audit", "verify", str(log), "--head", head]) == 0
    out = capsys.readouterr().out
    assert f"{LINES} lines" in out
    assert head in out
    assert out.endswith("whole\n")
    files(log)[1].unlink()
    assert main(["audit", "verify", str(log)]) == 1
    shown = capsys.readouterr()
    assert "are missing" in shown.err
    assert shown.out.endswith("BROKEN\n")


def test_paths_that_hold_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AuditFilesError, match="no audit files"):
        verify([tmp_path])
    assert main(["audit", "verify", str(tmp_path / "none")]) == 1
    assert "cannot be read" in capsys.readouterr().err
