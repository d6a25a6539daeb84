"""The store of refused drafts: bounded in bytes and time, readable after a crash at any byte."""

from __future__ import annotations

import contextlib
import shutil
import stat
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_cloud.engine.events import Refused
from outrider_cloud.replay.reading import Contents, read_store, segments
from outrider_cloud.replay.records import Record
from outrider_cloud.replay.store import Kind, ReplayConfig, ReplayStore
from outrider_cloud.replay.writer import ReplayWriter
from outrider_shared.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

KIND = Kind("ab" * 32, "cd" * 32, 4096, "target")
CAP = 1 << 16
DAY_S = 86400.0


def record(number: int = 0, length: int = 60) -> Record:
    tokens = tuple((number * 31 + 7 * i) % 4096 for i in range(length))
    return Record(tokens, 4, (Refused(length // 2, (5, 6)), Refused(length - 1, (number % 4096,))), 0.7)


@pytest.fixture
def make():
    """Makes stores, and closes them."""
    with contextlib.ExitStack() as stack:

        def made(*args, **kwargs) -> ReplayStore:
            store = ReplayStore(*args, **kwargs)
            stack.callback(closed, store)
            return store

        yield made


def closed(store: ReplayStore) -> None:
    with contextlib.suppress(OSError):
        store.close()


def read(folder: Path, now_s: float | None = None) -> tuple[list[Record], Contents]:
    contents = Contents()
    return [each for _, each in read_store(folder, contents, now_s)], contents


def test_what_was_written_is_read_with_what_it_belongs_to(make, tmp_path: Path):
    store = make(ReplayConfig(tmp_path / "r", CAP), KIND)
    written = [record(n) for n in range(5)]
    assert all(store.append(each) for each in written)
    assert read(tmp_path / "r")[0] == written  # while it is open
    store.close()
    header, _ = next(read_store(tmp_path / "r", Contents()))
    assert (header.target, header.tokenizer, header.vocabulary, header.model) == (
        KIND.target, KIND.tokenizer, KIND.vocabulary, KIND.model,
    )  # fmt: skip


def test_nobody_else_can_read_the_files(make, tmp_path: Path):
    store = make(ReplayConfig(tmp_path / "r", CAP), KIND)
    store.append(record())
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "r", *(tmp_path / "r").iterdir())]
    assert modes == [0o700, *[0o600] * (len(modes) - 1)]
    assert len(modes) == 3


def test_the_cap_holds_at_every_moment_and_the_oldest_go(make, tmp_path: Path):
    store = make(ReplayConfig(tmp_path, CAP), KIND)
    for number in range(1500):
        assert store.append(record(number))
        assert sum(path.stat().st_size for path in segments(tmp_path)) == store.size_bytes <= CAP
    left = read(tmp_path)[0]
    assert left == [record(number) for number in range(1500 - len(left), 1500)]
    assert 300 < len(left) < 1500


def test_a_record_that_could_never_fit_is_not_kept(make, tmp_path: Path):
    store = make(ReplayConfig(tmp_path, CAP), KIND)
    store.append(record())
    assert not store.append(record(1, length=4000))
    assert read(tmp_path)[0] == [record()]


def test_no_record_is_there_longer_than_promised(make, tmp_path: Path):
    now = [1000.0]
    store = make(ReplayConfig(tmp_path, CAP, keep_s=DAY_S), KIND, lambda: now[0])
    born: dict[Record, float] = {}
    for number in range(200):
        now[0] += DAY_S / 50
        born[record(number)] = now[0]
        store.append(record(number))
        left = read(tmp_path, 0.0)[0]
        ages = [now[0] - born[each] for each in left]
        assert max(ages) < DAY_S
        assert left[-1] == record(number)
    assert len(left) > 40
    now[0] += 2 * DAY_S
    store.expire()
    assert not segments(tmp_path)


def test_what_is_due_is_not_read_even_if_no_service_runs(make, tmp_path: Path):
    store = make(ReplayConfig(tmp_path, CAP, keep_s=DAY_S), KIND, lambda: 0.0)
    store.append(record())
    store.close()
    found, contents = read(tmp_path, DAY_S - 1)
    assert (len(found), contents.expired) == (1, 0)
    found, contents = read(tmp_path, DAY_S)
    assert (len(found), contents.expired) == (0, 1)


def test_a_shorter_time_holds_for_what_is_there_already(make, tmp_path: Path):
    store = make(ReplayConfig(tmp_path, CAP, keep_s=30 * DAY_S), KIND, lambda: 0.0)
    store.append(record())
    store.close()
    make(ReplayConfig(tmp_path, CAP, keep_s=DAY_S), KIND, lambda: 2 * DAY_S).close()
    assert not segments(tmp_path)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_crash_at_any_byte_costs_only_what_was_not_whole(tmp_path_factory, data: st.DataObject):
    folder = tmp_path_factory.mktemp("store")
    store = ReplayStore(ReplayConfig(folder, CAP), KIND)
    ends = []
    for number in range(6):
        store.append(record(number))
        ends.append(store.size_bytes)
    store.close()
    (path,) = segments(folder)
    cut = data.draw(st.integers(0, ends[-1]))
    path.write_bytes(path.read_bytes()[:cut])
    whole = sum(end <= cut for end in ends)
    assert read(folder)[0] == [record(number) for number in range(whole)]
    again = ReplayStore(ReplayConfig(folder, CAP), KIND)
    again.append(record(9))
    assert read(folder)[0] == [*(record(number) for number in range(whole)), record(9)]
    again.close()
    shutil.rmtree(folder)


def test_altered_bytes_are_noticed(make, tmp_path: Path):
    store = make(ReplayConfig(tmp_path, CAP), KIND)
    for number in range(3):
        store.append(record(number))
    (path,) = segments(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[-10] ^= 1
    path.write_bytes(damaged)
    found, contents = read(tmp_path)
    assert found == [record(0), record(1)]
    assert contents.torn == 1


def test_two_services_cannot_write_one_store(make, tmp_path: Path):
    store = make(ReplayConfig(tmp_path, CAP), KIND)
    with pytest.raises(ConfigError, match="another service writes to"):
        make(ReplayConfig(tmp_path, CAP), KIND)
    store.close()
    make(ReplayConfig(tmp_path, CAP), KIND).close()


def test_sizes_that_make_no_store_are_refused(tmp_path: Path):
    for wrong in ({"cap_bytes": 10}, {"keep_s": 0.0}, {"context_tokens": 0}):
        with pytest.raises(ConfigError, match="a replay store of"):
            ReplayConfig(tmp_path, **wrong)


class StuckStore:
    """A disk that takes nothing until it is told, then fails."""

    size_bytes = 0

    def __init__(self) -> None:
        self.going = threading.Event()

    def append(self, _: Record) -> bool:
        self.going.wait(30)
        raise StorageError("full")

    def expire(self) -> None:
        """Nothing is old."""

    def close(self) -> None:
        """Nothing is open."""


def test_a_disk_that_hangs_or_fails_holds_up_nobody():
    stuck = StuckStore()
    writer = ReplayWriter(stuck, 16)  # type: ignore[arg-type]
    writer.start()
    for number in range(1500):
        writer.put(record(number))  # returns although nothing is written
    assert writer.lost >= 1500 - 1024 - 1
    stuck.going.set()
    writer.stop()
    assert (writer.kept, writer.lost) == (0, 1500)


def test_a_full_disk_tears_one_record_and_the_next_is_written_when_there_is_room(make, tmp_path: Path):
    store = make(ReplayConfig(tmp_path, CAP), KIND)
    store.append(record(0))

    class Full:
        def __init__(self, file) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            return self.file.write(data[:20])

        def close(self) -> None:
            self.file.close()

    store._file = Full(store._file)
    with pytest.raises(StorageError, match="is the disk full"):
        store.append(record(1))
    assert store.append(record(2))
    found, contents = read(tmp_path)
    assert found == [record(0), record(2)]
    assert contents.torn == 1
    assert store.size_bytes == sum(path.stat().st_size for path in segments(tmp_path))
