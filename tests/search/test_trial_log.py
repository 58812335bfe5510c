"""A search's record survives interruption at any byte, and refuses another search's folder."""

from pathlib import Path

import numpy as np
import pytest

from bignas.device_db.errors import InputError
from bignas.search.trial import Trial
from bignas.search.trial_log import TrialLog
from tests.search.synthetic import make_space

QUESTION = {"budget_ms": 1.5, "seed": 0}


def _batches(count: int) -> list[list[Trial]]:
    space, random = make_space(), np.random.default_rng(0)
    return [
        [
            Trial(space.sample(random), 1.0 + index, 0.5, 0.5),
            Trial(space.sample(random), 9.0, 3.0),
        ]
        for index in range(count)
    ]


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    batches = _batches(3)
    log = TrialLog(tmp_path, QUESTION)
    for batch in batches:
        log.append(batch)
    assert TrialLog(tmp_path, QUESTION).read() == batches


def test_a_write_cut_at_any_byte_loses_the_last_batch_only(tmp_path: Path) -> None:
    batches = _batches(2)
    log = TrialLog(tmp_path, QUESTION)
    for batch in batches:
        log.append(batch)
    path = tmp_path / "trials.jsonl"
    complete = path.read_bytes()
    first = complete.index(b"\n") + 1
    for cut in range(first, len(complete), 7):
        path.write_bytes(complete[:cut])
        again = TrialLog(tmp_path, QUESTION)
        assert again.read() == batches[:1]
        again.append(batches[1])
        assert again.read() == batches


def test_another_search_in_the_folder_is_refused(tmp_path: Path) -> None:
    TrialLog(tmp_path, QUESTION)
    with pytest.raises(InputError, match="budget_ms"):
        TrialLog(tmp_path, {**QUESTION, "budget_ms": 2.0})


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\x00", b'{"format_version": 99}'])
def test_a_damaged_description_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "search.json").write_bytes(content)
    with pytest.raises(InputError):
        TrialLog(tmp_path, QUESTION)


def test_a_damaged_batch_is_refused(tmp_path: Path) -> None:
    log = TrialLog(tmp_path, QUESTION)
    (tmp_path / "trials.jsonl").write_bytes(b'[{"arch": 3}]\n')
    with pytest.raises(InputError, match="damaged"):
        log.read()
