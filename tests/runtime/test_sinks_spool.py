"""The spool's files: damage costs the damaged records only, and never one that comes later."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from rdedge.errors import SinkError
from rdedge.sinks.spool import Item, Spool, decode, encode

Disk = Callable[[int], AbstractContextManager[None]]
OpenSpool = Callable[..., Spool]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def open_spool(folder: Path) -> Iterator[OpenSpool]:
    opened: list[Spool] = []

    def make(max_bytes: int = 1 << 20) -> Spool:
        opened.append(Spool(folder, max_bytes=max_bytes))
        return opened[-1]

    yield make
    for spool in opened:
        spool.close()


def fill(spool: Spool, seqs: range) -> None:
    for seq in seqs:
        spool.append(encode(Item(seq, "verdict", b'{"n": "a b"}')))


def seqs_of(spool: Spool, limit: int = 10_000) -> list[int]:
    return [item.seq for item in spool.read(limit)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.spool"))


def test_a_record_comes_back_as_it_was() -> None:
    item = Item(7, "verdict", '{"source": "ä b\\n"}'.encode())
    assert decode(encode(item)) == item


@pytest.mark.parametrize("position", range(0, 40, 3))
def test_a_flipped_bit_is_noticed_wherever_it_is(position: int) -> None:
    line = bytearray(encode(Item(7, "verdict", b'{"index": 1, "score": 2}')))
    line[position] ^= 1
    assert decode(bytes(line)) is None


def test_reading_follows_the_writer(open_spool: OpenSpool) -> None:
    spool = open_spool()
    fill(spool, range(1, 4))
    assert seqs_of(spool, 2) == [1, 2]
    fill(spool, range(4, 6))
    assert (spool.unread, seqs_of(spool), seqs_of(spool)) == (3, [3, 4, 5], [])


def test_what_was_read_and_not_acknowledged_comes_again_after_a_restart(open_spool: OpenSpool) -> None:
    spool = open_spool(max_bytes=4000)
    fill(spool, range(1, 60))
    assert seqs_of(spool) == list(range(1, 60))
    spool.ack(20)
    spool.close()
    again = open_spool(max_bytes=4000)
    assert (again.unread, again.last_seq) == (39, 59)
    assert seqs_of(again) == list(range(21, 60))


def test_acknowledged_files_go(open_spool: OpenSpool, folder: Path) -> None:
    spool = open_spool(max_bytes=4000)
    fill(spool, range(1, 60))
    before = len(files(folder))
    seqs_of(spool)
    spool.ack(30)
    assert len(files(folder)) < before
    spool.ack(59)
    assert len(files(folder)) == 1
    spool.close()
    assert files(folder) == [] and sorted(os.listdir(folder)) == ["delivered", "lock"]
    assert open_spool().last_seq == 59, "numbers are never used again"


def test_records_acknowledged_but_lost_by_a_power_cut_do_not_swallow_later_ones(
    open_spool: OpenSpool, folder: Path
) -> None:
    """The number of the last delivered one may reach the disk before the records themselves do."""
    spool = open_spool()
    fill(spool, range(1, 11))
    seqs_of(spool)
    spool.ack(8)
    spool.close()
    (path,) = files(folder)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    again = open_spool()
    assert again.last_seq >= 8
    fill(again, range(again.last_seq + 1, again.last_seq + 4))
    assert seqs_of(again) == [9, 10, 11]


@pytest.mark.parametrize(
    ("damage", "left", "damaged"),
    [
        (lambda data: data[:-7], range(1, 10), 0),
        (lambda data: data[:-7] + b"\0" * 7, range(1, 10), 0),
        (lambda data: data.replace(b" 5 v", b" 6 v"), [1, 2, 3, 4, 6, 7, 8, 9, 10], 1),
        (lambda data: b"\n" + data, range(1, 11), 1),
        (lambda data: b"", [], 0),
        (lambda data: os.urandom(1000).replace(b"\n", b"x"), [], 0),
    ],
    ids=["torn", "torn-with-zeros", "a-digit", "an-empty-line", "emptied", "noise"],
)
def test_damage_costs_what_is_damaged(
    open_spool: OpenSpool, folder: Path, damage: Callable[[bytes], bytes], left: list[int], damaged: int
) -> None:
    spool = open_spool()
    fill(spool, range(1, 11))
    spool.close()
    (path,) = files(folder)
    path.write_bytes(damage(path.read_bytes()))
    again = open_spool()
    assert (again.damaged, again.unread) == (damaged, len(left))
    first_new = again.last_seq + 1
    fill(again, range(first_new, first_new + 3))
    assert seqs_of(again) == [*left, *range(first_new, first_new + 3)]
    assert again.take_lost() == 0


@pytest.mark.parametrize("content", [b"", encode(Item(11, "verdict", b"{}"))[:-5]], ids=["empty", "half-a-record"])
def test_a_file_whose_first_record_was_cut_off_by_a_kill_is_not_in_the_way(
    open_spool: OpenSpool, folder: Path, content: bytes
) -> None:
    """The next record gets its number, and so its file's name."""
    spool = open_spool()
    fill(spool, range(1, 11))
    spool.close()
    (folder / f"{11:020d}.spool").write_bytes(content)
    again = open_spool()
    fill(again, range(11, 13))
    assert seqs_of(again, 10) == list(range(1, 11))
    again.ack(10)
    again.close()
    assert seqs_of(open_spool()) == [11, 12]


@pytest.mark.parametrize("content", [b"", b"garbage", b"\0" * 21, b"-5"])
def test_without_the_number_of_the_last_delivered_all_comes_again(
    open_spool: OpenSpool, folder: Path, content: bytes
) -> None:
    spool = open_spool()
    fill(spool, range(1, 11))
    seqs_of(spool)
    spool.ack(5)
    spool.close()
    (folder / "delivered").write_bytes(content)
    assert seqs_of(open_spool()) == list(range(1, 11))


def test_a_folder_emptied_under_a_running_process_is_counted_and_filled_again(
    open_spool: OpenSpool, folder: Path
) -> None:
    spool = open_spool(max_bytes=4000)
    fill(spool, range(1, 60))
    shutil.rmtree(folder)
    read = seqs_of(spool)
    assert read == [] and spool.take_lost() == 59
    fill(spool, range(60, 63))
    assert seqs_of(spool) == [60, 61, 62]


def test_a_file_cut_under_a_running_process_is_counted(open_spool: OpenSpool, folder: Path) -> None:
    spool = open_spool(max_bytes=4000)
    fill(spool, range(1, 60))
    files(folder)[1].write_bytes(b"")
    read = seqs_of(spool)
    lost = spool.take_lost()
    assert lost > 0 and len(read) + lost == 59 and read[-1] == 59


def test_dropping_while_a_file_is_read_counts_only_what_was_not_read(open_spool: OpenSpool) -> None:
    spool = open_spool(max_bytes=4000)
    fill(spool, range(1, 60))
    read = seqs_of(spool, 3)
    fill(spool, range(60, 400))
    lost = spool.take_lost()
    rest = seqs_of(spool)
    assert read == [1, 2, 3] and rest[-1] == 399 and rest == list(range(rest[0], 400))
    assert len(read) + lost + len(rest) == 399 and lost > 0


def test_a_record_the_disk_refuses_is_not_there(open_spool: OpenSpool, folder: Path, disk_of: Disk) -> None:
    spool = open_spool()
    fill(spool, range(1, 3))
    with disk_of(files(folder)[0].stat().st_size + 10), pytest.raises(OSError, match="the disk is full"):
        fill(spool, range(3, 4))
    fill(spool, range(3, 5))
    assert seqs_of(spool) == [1, 2, 3, 4]
    assert spool.take_lost() == 0


HOLD = """
import sys
from pathlib import Path
from rdedge.sinks.spool import Spool
spool = Spool(Path(sys.argv[1]), max_bytes=1000)
print("open", flush=True)
sys.stdin.read()
"""


def test_two_processes_cannot_share_it(open_spool: OpenSpool, folder: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(SinkError, match="another process delivers from it; name a folder of its own"):
            open_spool()
        other.stdin.close()
    open_spool()


def test_a_file_in_place_of_the_folder_is_an_error(open_spool: OpenSpool, folder: Path) -> None:
    folder.write_bytes(b"mine")
    with pytest.raises(SinkError, match=r"spool: cannot keep what waits for delivery \(File exists\)"):
        open_spool()
    assert folder.read_bytes() == b"mine"
