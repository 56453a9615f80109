"""The log of a run: whole lines from many processes, and a reader that waits for what is not whole."""

import json
import subprocess
import sys

from ammd.event_log import ENVIRONMENT, EventLog, EventReader
from ammd.progress import progress

WRITER = """
import sys
from pathlib import Path
from ammd.event_log import EventLog

log = EventLog(Path(sys.argv[1]))
for number in range(200):
    log.write("count", who=sys.argv[2], number=number, text="é" * 50)
"""


def test_lines_of_many_processes_stay_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    writers = [subprocess.Popen([sys.executable, "-P", "-c", WRITER, path, str(who)]) for who in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    events = EventReader(path).read()
    assert len(events) == 800
    for who in "0123":
        assert [event["number"] for event in events if event["who"] == who] == list(range(200))


def test_reader_gives_what_is_new_and_waits_for_the_rest_of_a_line(tmp_path):
    path = tmp_path / "log.jsonl"
    reader = EventReader(path)
    assert reader.read() == []  # not there yet
    path.write_text('{"event": "a", "time": 1}\n{"event": "b", "ti', encoding="utf-8")
    assert [event["event"] for event in reader.read()] == ["a"]
    assert reader.read() == []
    with path.open("a", encoding="utf-8") as stream:
        stream.write('me": 2}\n')
    assert reader.read() == [{"event": "b", "time": 2}]


def test_reader_leaves_out_what_is_no_event(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        b'\n[1]\n"x"\n{"event": 3, "time": 1}\n{"event": "no time"}\n\xff\xfe\nnull\n{"event": "a", "time": 1}\n'
    )
    assert EventReader(path).read() == [{"event": "a", "time": 1}]


def test_line_that_a_killed_process_left_does_not_swallow_the_next_one(tmp_path):
    path = tmp_path / "log.jsonl"
    log = EventLog(path)
    log.end_line()  # no file: nothing to end
    path.write_text('{"event": "half', encoding="utf-8")
    log.end_line()
    log.write("whole")
    assert [event["event"] for event in EventReader(path).read()] == ["whole"]


def test_what_cannot_be_written_is_left_out(tmp_path):
    EventLog(tmp_path / "no" / "folder" / "log.jsonl").write("lost")
    assert list(tmp_path.iterdir()) == []


def test_progress_goes_into_the_log_though_nothing_is_shown(tmp_path, monkeypatch, capfd):
    path = tmp_path / "log.jsonl"
    monkeypatch.setenv(ENVIRONMENT, str(path))
    with progress("work", 10) as report:
        report(4)  # what an earlier process has done
        report(5)  # within the same second: left out
        report(10, "all")
    with progress("of another process", 10, silent=True) as report:
        report(1)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["label"], line["first"], line["done"], line["note"]) for line in lines] == [
        ("work", 4, 4, ""),
        ("work", 4, 10, "all"),
    ]
    assert capfd.readouterr() == ("", "")
