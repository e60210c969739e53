"""Files that are old or new, never half."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys

import pytest

from orchestrator.errors import WorkError
from orchestrator.files import finite, read_json, write_bytes, write_json, write_text
from orchestrator.run_folder.records import JsonLines, drop_after, read_lines


def test_round_trip_and_nothing_else_stays(tmp_path):
    write_json(tmp_path / "a.json", {"name": "ä", "values": (1, 2.5, None)})
    assert read_json(tmp_path / "a.json") == {"name": "ä", "values": [1, 2.5, None]}
    write_text(tmp_path / "a.json", "two")
    assert (tmp_path / "a.json").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        write_bytes(tmp_path / "a", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_nan_and_infinity_become_null():
    value = {"a": [math.nan, 1.0], "b": (math.inf,), "c": "nan", "d": {"e": -math.inf}}
    assert finite(value) == {"a": [None, 1.0], "b": [None], "c": "nan", "d": {"e": None}}


def test_what_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1}


LIMITED = """
import resource, signal, sys
from pathlib import Path
from orchestrator.errors import WorkError
from orchestrator.files import write_bytes
from orchestrator.run_folder.records import JsonLines
folder = Path(sys.argv[1])
write_bytes(folder / "a", b"old")
lines = JsonLines(folder / "lines")
lines.append({"step": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (lambda: write_bytes(folder / "a", b"new" * 1000),
              lambda: lines.append({"step": 2, "text": "x" * 2000})):
    try:
        write()
    except (OSError, WorkError) as error:
        print(type(error).__name__)
lines.append({"step": 3})
"""


def test_a_disk_that_takes_no_more(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["OSError", "WorkError"]
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [line["step"] for line in read_lines(tmp_path / "lines")] == [1, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "lines"]


@pytest.mark.parametrize("torn", [b'{"step": 3', b"x" * 200_000])
def test_a_torn_last_line_is_cut(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    lines.append({"step": 1})
    lines.append({"step": 2, "value": math.nan})
    lines.close()
    with path.open("ab") as file:
        file.write(torn)
    assert [line["step"] for line in read_lines(path)] == [1, 2], "readers pass over it"
    again = JsonLines(path)
    again.append({"step": 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2, "value": None},
        {"step": 3},
    ]


def test_a_file_of_one_torn_line_becomes_empty(tmp_path):
    (tmp_path / "a").write_bytes(b"half a line")
    JsonLines(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b""


def test_drop_after(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert drop_after(path, 5) == 0
    path.write_bytes(b'{"step": 4}\n{"step": 5}\n{"step": 6}\n{"step": 5}\n{"st')
    assert drop_after(path, 5) == 1
    assert path.read_bytes() == b'{"step": 4}\n{"step": 5}\n{"step": 5}\n'


KILLED = """
import sys
from pathlib import Path
from orchestrator.run_folder.records import JsonLines
lines = JsonLines(Path(sys.argv[1]))
print("ready", flush=True)
step = 0
while True:
    step += 1
    lines.append({"step": step, "text": "x" * (step % 3000)})
"""


def test_lines_of_a_killed_process_are_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    while not path.exists() or path.stat().st_size < 300_000:
        assert process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()
    steps = [line["step"] for line in read_lines(path)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 100


def test_closing_twice_is_fine_and_writing_after_is_not(tmp_path):
    lines = JsonLines(tmp_path / "a")
    lines.close()
    lines.close()
    with pytest.raises((OSError, WorkError)):
        lines.append({"step": 1})
