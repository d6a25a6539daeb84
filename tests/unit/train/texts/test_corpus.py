"""Reading of data files, and the split into training and held-out."""

from pathlib import Path

import pytest
import zstandard

from outrider_cloud.train.texts.corpus import CorpusError, is_held_out, read_rows
from outrider_cloud.train.texts.documents import Reading, read_documents
from unit.train.rows import write_rows


def test_rows_come_with_their_place(tmp_path: Path):
    path = tmp_path / "a.jsonl.zst"
    write_rows(path, [{"n": 1}, {"n": 2}])
    assert [(place, row["n"]) for place, row in read_rows(path)] == [(f"{path}:1", 1), (f"{path}:2", 2)]


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"n": ', r"a\.jsonl\.zst:2: not JSON"), ("[1]", r"a\.jsonl\.zst:2: expected a JSON object, found list")],
)
def test_a_broken_line_is_named_by_file_and_line(tmp_path: Path, line: str, message: str):
    path = tmp_path / "a.jsonl.zst"
    write_rows(path, [{"n": 1}, line])
    with pytest.raises(CorpusError, match=message):
        list(read_rows(path))


def test_a_file_cut_off_in_the_middle_is_an_error(tmp_path: Path):
    path = tmp_path / "a.jsonl.zst"
    write_rows(path, [{"n": str(n) * 50} for n in range(5000)])
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CorpusError, match=r"a\.jsonl\.zst"):
        list(read_rows(path))


@pytest.mark.parametrize("skip", [False, True])
def test_a_file_cut_off_behind_a_whole_line_is_an_error(tmp_path: Path, *, skip: bool):
    path = tmp_path / "a.jsonl.zst"
    write_cut(path, [f'{{"text": "{n}"}}\n' for n in range(300)])
    for read in (read_rows(path), read_documents([path], Reading(skip_broken=skip))):
        with pytest.raises(CorpusError, match=r"a\.jsonl\.zst:300: damaged after this line: .*cut off"):
            list(read)


def test_an_archive_of_several_frames_is_read_to_its_end(tmp_path: Path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstandard.compress(part) for part in (b'{"n": 1}\n{"n"', b': 2}\r\n{"n":', b" 3}")))
    assert [row["n"] for _, row in read_rows(path)] == [1, 2, 3]


def write_cut(path: Path, lines: list[str]) -> None:
    """An archive that lost its end behind a whole block, as a broken download may: all lines can be read."""
    packer = zstandard.ZstdCompressor().compressobj()
    whole = packer.compress("".join(lines).encode()) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    path.write_bytes(whole)


def test_a_file_that_is_no_archive_is_an_error(tmp_path: Path):
    path = tmp_path / "a.jsonl.zst"
    path.write_text('{"n": 1}\n')
    with pytest.raises(CorpusError, match="damaged"):
        list(read_rows(path))


def test_a_missing_file_is_an_error(tmp_path: Path):
    with pytest.raises(CorpusError, match="cannot be opened"):
        list(read_rows(tmp_path / "none.jsonl.zst"))


def test_the_split_ignores_case_and_outer_space():
    texts = [f"turn on light {n}" for n in range(2000)]
    assert [is_held_out(text) for text in texts] == [is_held_out(f" {text.upper()} ") for text in texts]
    assert 10 < sum(map(is_held_out, texts)) < 100
