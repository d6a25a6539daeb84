"""An update of the draft: the good way, and the power cut at every write. Attacks: `integration/fleet/test_attacks`."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import tempfile
from pathlib import Path

import pytest

from outrider_shared.errors import SelfTestError, StorageError
from outrider_shared.fleet.desired import Assignment, Config, Window
from outrider_shared.fleet.messages import UpdateState
from support.updates import Bench, CuttableDisk, PowerCutError


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def update(bench: Bench, assignment: Assignment, **settings):
    """Start the device, assign, run to the end; the last record."""

    async def run():
        updater = bench.updater(**settings)
        updater.boot()
        if await updater.assign(assignment):
            await asyncio.wait_for(updater.run(), 60)
        return updater.record

    return asyncio.run(run())


GOOD = ["assigned", "downloading", "verifying", "staged", "self_test", "switched", "probation", "committed"]


def test_a_good_update_goes_through_every_state_and_is_used(bench):
    record = update(bench, bench.publish("one"))
    assert (record.state, bench.active()) == (UpdateState.COMMITTED, "one")
    assert bench.states() == GOOD
    assert (bench.host.loaded, bench.host.rests) == (["one"], [0]), "it was loaded when nobody waited for an answer"
    numbers = [told.number for told in bench.told if told.rollout]
    assert numbers == sorted(set(numbers)), "each step is told with a number of its own"
    assert not list((bench.folder / "state" / "incoming").iterdir())


def test_the_second_update_goes_to_the_other_slot_and_back_needs_no_download(bench):
    first, second = bench.publish("one"), bench.publish("two")
    update(bench, first)
    update(bench, second)
    assert bench.active() == "two"
    asked = len([name for name, _ in bench.pool.asked if name.endswith(".tar")])
    record = update(bench, bench.assignment(first.target, attempt=2))
    assert (record.state, bench.active()) == (UpdateState.COMMITTED, "one")
    assert len([name for name, _ in bench.pool.asked if name.endswith(".tar")]) == asked


def test_back_to_the_pack_that_came_with_the_package(bench):
    update(bench, bench.publish("one"))
    record = update(bench, Assignment("back", 1, "bundled", "0" * 64))
    assert (record.state, bench.active()) == (UpdateState.COMMITTED, "base")


def test_the_same_assignment_again_is_nothing_to_do(bench):
    one = bench.publish("one")
    update(bench, one)
    before = len(bench.pool.asked)
    update(bench, one)
    assert len(bench.pool.asked) == before


def test_a_download_that_broke_goes_on_where_it_ended(bench):
    one = bench.publish("one", random.Random(1).randbytes(300_000))
    bench.pool.broken_after = 100_000
    record = update(bench, one)
    assert record.state is UpdateState.COMMITTED
    offsets = [offset for name, offset in bench.pool.asked if name.endswith(".tar")]
    assert offsets[0] == 0
    assert offsets[1] >= 100_000 - (32 << 10)
    assert "deferred" in bench.states()


def test_a_delta_is_taken_where_the_base_is_installed_and_a_bad_one_costs_only_itself(bench):
    weights = bytearray(random.Random(2).randbytes(400_000))
    update(bench, bench.publish("one", bytes(weights)))
    weights[1000:2000] = bytes(1000)
    two = bench.publish("two", bytes(weights))
    record = update(bench, two)
    assert (record.state, bench.active()) == (UpdateState.COMMITTED, "two")
    names = [name for name, _ in bench.pool.asked]
    assert any(name.endswith(".zst") for name in names)
    assert not any("two" in name and name.endswith(".tar") for name in names)
    delta = next((bench.repository.targets / "draft/int8").glob("*.zst"))
    assert delta.stat().st_size < 0.1 * 400_000

    weights[5000:6000] = bytes(1000)
    three = bench.publish("three", bytes(weights))
    bench.pool.altered[".zst"] = lambda data: iter([data[:20] + b"\0" + data[21:]])
    record = update(bench, three)
    assert (record.state, bench.active()) == (UpdateState.COMMITTED, "three")


def test_a_closed_window_defers_and_an_open_one_goes_on(bench):
    now = 3600.0 * 19

    def wall() -> float:
        nonlocal now
        now += 600
        return now

    config = Config(window=Window(3600 * 20, 3600 * 21), probation_s=0.0)
    record = update(bench, bench.publish("one"), config=config, wall=wall)
    assert record.state is UpdateState.COMMITTED
    assert any(told.code == "window_closed" for told in bench.told)


def test_bandwidth_is_bounded(bench):
    import outrider_edge.agent.update.download as module
    from outrider_edge.agent.disk import Disk

    one = bench.publish("one", random.Random(1).randbytes(300_000))
    slept = []
    pace = module.Pace(bytes_s=100_000, clock=lambda: sum(slept), sleep=slept.append)
    target = bench.repository.listed()[one.target]
    url = f"http://fleet/targets/draft/int8/{target.hashes['sha256']}.one-1.tar"
    part = bench.folder / "part"
    module.download(bench.pool, url, part, target.length, one.sha256, Disk(), pace)
    assert sum(slept) == pytest.approx(target.length / 100_000, rel=0.15)


def test_a_withdrawn_pack_is_refused(bench):
    one = bench.publish("one")
    bench.repository.withdraw(one.target)
    assert update(bench, one).code == "artifact_unlisted"


def test_a_pack_for_another_class_of_device_is_refused(bench):
    record = update(bench, bench.publish("one", device_class="int4"))
    assert (record.state, record.code) == (UpdateState.REJECTED, "mismatch")


def test_an_assignment_and_the_metadata_must_agree_on_the_hash(bench):
    one = bench.publish("one")
    record = update(bench, Assignment("r", 1, one.target, "0" * 64))
    assert (record.state, record.code) == (UpdateState.FAILED, "artifact_altered")


def test_a_pack_that_fails_its_self_test_is_never_used(bench):
    def fails(folder, golden):
        raise SelfTestError("3 of 48 golden tokens agree")

    record = update(bench, bench.publish("one"), test=fails)
    assert (record.state, record.code, bench.active()) == (UpdateState.FAILED, "self_test", "base")
    assert bench.host.loaded == []


def test_a_full_disk_ends_the_attempt_and_leaves_room_and_a_working_draft(bench, monkeypatch):
    from outrider_edge.agent.disk import Disk

    class FullDisk(Disk):
        def append(self, path, data):
            if self.size(path) > 60_000:
                raise StorageError(f"{path}: No space left on device")
            super().append(path, data)

    record = update(bench, bench.publish("one"), disk=FullDisk())
    assert (record.state, record.code, bench.active()) == (UpdateState.FAILED, "storage", "base")
    assert not list((bench.folder / "state" / "incoming").iterdir())


def test_a_write_that_the_system_refuses_ends_the_attempt_and_the_next_one_succeeds(bench):
    """No file may grow beyond 60 kB: the real disk's error in the middle of a download, not one of ours."""
    one = bench.publish("one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        record = update(bench, one)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (record.state, record.code, bench.active()) == (UpdateState.FAILED, "storage", "base")
    assert not list((bench.folder / "state" / "incoming").iterdir())
    record = update(bench, bench.assignment(one.target, attempt=2))
    assert (record.state, bench.active()) == (UpdateState.COMMITTED, "one")


# Probation


def test_a_draft_that_fails_at_work_is_taken_back(bench):
    update(bench, bench.publish("one"))
    two = bench.publish("two")

    async def run():
        updater = bench.updater(config=Config(probation_s=1000, probation_requests=1000))
        updater.boot()
        await updater.assign(two)
        host = bench.host
        host.on_swap = lambda: asyncio.get_running_loop().call_later(0.02, host.usage.draft_failed)
        await asyncio.wait_for(updater.run(), 30)
        assert (updater.record.state, updater.record.code) == (UpdateState.ROLLED_BACK, "probation")
        assert host.loaded == ["two", "one"]

    asyncio.run(run())
    assert bench.active() == "one"


def test_enough_answers_end_probation(bench):
    from outrider_edge.session.events import Totals

    one = bench.publish("one")

    async def run():
        updater = bench.updater(config=Config(probation_s=1e9, probation_requests=3))
        updater.boot()
        await updater.assign(one)
        task = asyncio.create_task(updater.run())
        while updater.record.state is not UpdateState.PROBATION:  # noqa: ASYNC110 - it tells no event
            await asyncio.sleep(0.01)
        for _ in range(3):
            assert updater.record.state is UpdateState.PROBATION
            bench.host.usage.answered(10, 1.0, 0.1, Totals())
        await asyncio.wait_for(task, 30)
        assert updater.record.state is UpdateState.COMMITTED

    asyncio.run(run())


def test_a_draft_that_ends_the_process_with_each_start_is_left(bench):
    update(bench, bench.publish("one"))
    two = bench.publish("two")
    config = Config(probation_s=1e9, probation_requests=10**6, probation_boots=3)

    async def start(first: bool) -> str:
        updater = bench.updater(config=config)
        updater.boot()
        started = bench.active()
        if first:
            await updater.assign(two)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(updater.run(), 1.0)
        return started

    assert [asyncio.run(start(i == 0)) for i in range(6)] == ["one", "two", "two", "two", "one", "one"]
    assert bench.told[-1].state is UpdateState.ROLLED_BACK


def test_a_newer_assignment_takes_over_and_the_proven_pack_survives(bench):
    update(bench, bench.publish("one"))
    two, three = bench.publish("two"), bench.publish("three")

    async def run():
        updater = bench.updater(config=Config(probation_s=1e9, probation_requests=10**6))
        updater.boot()
        await updater.assign(two)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(updater.run(), 1.0)
        assert updater.record.state is UpdateState.PROBATION
        updater.config = Config(probation_s=0.0)
        await updater.assign(three)
        assert bench.active() == "one"
        await updater.run()
        assert {updater.slots.label(slot).target for slot in "ab"} == {"draft/int8/one-1.tar", "draft/int8/three-1.tar"}

    asyncio.run(run())
    assert bench.active() == "three"


# Power


def writes_of(bench: Bench, assignment: Assignment, **settings) -> int:
    disk = CuttableDisk()
    update(bench, assignment, disk=disk, **settings)
    return disk.count


def cut(bench: Bench, assignment: Assignment, disk: CuttableDisk, **settings) -> bool:
    """Whether the power went."""
    try:
        update(bench, assignment, disk=disk, **settings)
    except PowerCutError:
        return True
    return False


@pytest.fixture
def quick_folder(tmp_path):
    """In memory where there is such a place: hundreds of updates would wait for the disk."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


def test_with_the_power_cut_at_any_write_the_device_ends_on_a_working_draft_and_finishes(quick_folder):
    """Each write of an update from one installed pack to the next, cut in its middle; what was not synced is lost."""
    start = quick_folder / "start"
    bench = Bench(start)
    update(bench, bench.publish("one"))
    two = bench.publish("two", deltas=0)
    shutil.copytree(start / "state", quick_folder / "saved")
    total = writes_of(bench, two)
    assert total > 40
    for at in range(total):
        shutil.rmtree(start / "state")
        shutil.copytree(quick_folder / "saved", start / "state")
        assert cut(bench, two, CuttableDisk(at, lose=at % 3 != 0)), f"write {at} was not reached"
        assert bench.active() in {"one", "two"}, f"after a cut at write {at}"
        record = update(bench, two, disk=CuttableDisk())
        assert (record.state, bench.active()) == (UpdateState.COMMITTED, "two"), f"after a cut at write {at}"


def test_with_the_power_cut_at_any_write_of_a_way_back_the_device_ends_on_the_proven_draft(quick_folder):
    start = quick_folder / "start"
    bench = Bench(start)
    update(bench, bench.publish("one"))
    two = bench.publish("two")
    probation = Config(probation_s=1e9, probation_requests=10**6, probation_boots=50)

    async def to_probation():
        updater = bench.updater(config=probation)
        updater.boot()
        await updater.assign(two)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(updater.run(), 1.0)

    asyncio.run(to_probation())
    shutil.copytree(start / "state", quick_folder / "saved")

    async def fail(disk=None):
        updater = bench.updater(disk=disk, config=probation)
        updater.boot()
        task = asyncio.create_task(updater.run())
        await asyncio.sleep(0.005)
        bench.host.usage.draft_failed()
        await asyncio.wait_for(task, 30)
        return updater.record

    counting = CuttableDisk()
    assert asyncio.run(fail(counting)).state is UpdateState.ROLLED_BACK
    for at in range(counting.count):
        shutil.rmtree(start / "state")
        shutil.copytree(quick_folder / "saved", start / "state")
        with pytest.raises(PowerCutError):
            asyncio.run(fail(CuttableDisk(at)))
        assert bench.active() in {"one", "two"}
        record = asyncio.run(fail(CuttableDisk()))
        assert (record.state, bench.active()) == (UpdateState.ROLLED_BACK, "one"), f"after a cut at write {at}"


def test_with_the_power_cut_again_and_again_it_still_gets_there(quick_folder):
    bench = Bench(quick_folder)
    one, rng = bench.publish("one"), random.Random(5)
    patient = Config(probation_s=0.0, probation_boots=100)
    cuts = 0
    while cut(bench, one, CuttableDisk(rng.randrange(3, 30), lose=bool(cuts % 2)), config=patient):
        cuts += 1
        assert bench.active() in {"base", "one"}
        assert cuts < 60
    assert cuts > 2
    assert bench.active() == "one"
