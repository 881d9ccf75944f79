# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark's own sums: which rounds count, ratios and their spread, what holds, tables, and a round trip cut into stages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "net")]

from benchlib import __main__ as command  # noqa: E402
from benchlib import anatomy, common, report, speed  # noqa: E402
from benchlib.measure import GIB, Failed, Run, Spread, interleave, median, observe, plain, ratio, tool  # noqa: E402
from benchlib.stacks import sectors_of  # noqa: E402


def runs(*rates: float) -> list[Run]:
    return [Run(seconds=1.0, bytes=int(rate * 1e6), operations=1) for rate in rates]


# -- what counts -----------------------------------------------------------------------------------------------------


def sides(order: list[str], others: dict[str, list[float]]) -> dict[str, Callable[[], Run]]:
    """Sides that tell when they were run, each with the given disturbances in turn (the last one for ever)."""

    def one(name: str) -> Run:
        order.append(name)
        left = others[name]
        return Run(1.0, order.count(name), 1, others=left.pop(0) if len(left) > 1 else left[0])

    return {name: lambda name=name: one(name) for name in others}  # type: ignore[misc]


def test_order_alternates() -> None:
    order: list[str] = []
    found = interleave(3, sides(order, {"a": [0.0], "b": [0.0]}))
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(several) for name, several in found.items()} == {"a": 3, "b": 3}


def test_disturbed_rounds_are_repeated_and_pairs_stay_together() -> None:
    order: list[str] = []
    found = interleave(2, sides(order, {"a": [0.0, 0.9, 0.0], "b": [0.1]}), quiet=0.2)
    assert [run.bytes for run in found["a"]] == [1, 3]
    assert [run.bytes for run in found["b"]] == [1, 3]


def test_a_machine_that_is_never_quiet_ends_it_too() -> None:
    order: list[str] = []
    found = interleave(2, sides(order, {"a": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]}), quiet=0.2, most=3)
    assert len(order) == 6
    assert sorted(run.others for run in found["a"]) == [0.4, 0.5]


def test_ratio_is_of_neighbours() -> None:
    found = ratio(runs(10, 40, 30), runs(20, 20, 10), lambda run: run.rate)
    assert found == Spread(median=2.0, least=0.5, most=3.0, runs=3)
    assert found.text() == "2.00 (0.50 to 3.00)"
    assert median([3, 1, 2], 1) == "2.0"


def test_cpu_time_by_process() -> None:
    run = Run(1.0, GIB // 2, 1000, {"bridge": 1.0, "target": 0.5, "client": 9.0})
    assert run.cpu_per_gib("bridge") == 2.0
    assert run.cpu_per_gib("bridge", "target") == 3.0
    assert run.cpu_per_million("target") == 500.0


def test_observe_tells_one_process_from_another() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy,
        subprocess.Popen(["sleep", "60"]) as idle,
    ):
        try:

            def until_it_has_worked() -> Run:
                before = observe({"busy": busy.pid}, lambda: Run(1, 1, 1))
                while sum(before.cpu.values()) < 0.01:
                    more = observe({"busy": busy.pid}, lambda: Run(1, 1, 1))
                    before.cpu["busy"] += more.cpu["busy"]
                return Run(1, 1, 1)

            found = observe({"busy": busy.pid, "idle": idle.pid}, until_it_has_worked)
        finally:
            busy.kill()
            idle.kill()
    assert found.cpu["busy"] > 0.01
    assert found.cpu["idle"] < 0.01
    assert found.others >= 0


def test_a_program_that_fails_is_told_with_its_words() -> None:
    with pytest.raises(Failed, match="floor ended with status 1: no such thing"):
        tool(["sh", "-c", "echo no such thing >&2; exit 1"], "floor")


def test_a_lost_frame_is_another_try(tmp_path: Path) -> None:
    once = f"test -e {tmp_path}/x || {{ touch {tmp_path}/x; exit 3; }}; echo "
    found = tool(
        ["sh", "-c", once + """'{"seconds": 2, "bytes": 8, "operations": 4, "cpu": 1, "p50_us": 7}'"""], "floor"
    )
    assert (found.operation_rate, found.cpu, found.figures) == (2.0, {"floor": 1}, {"p50_us": 7})


def test_frames_are_as_large_as_the_bridge_makes_them() -> None:
    assert [sectors_of(mtu) for mtu in (9000, 1500, 4200, 5000)] == [16, 2, 8, 8]


# -- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "most", "holds"), [(0.9, False, True), (1.0, False, False), (0.9, True, True), (0.8, True, False)]
)
def test_the_median_holds_or_not(bound: float, most: bool, holds: bool) -> None:
    claim = report.Claim("it", bound, Spread(0.9, 0.1, 2.0, 5), most=most)
    assert claim.holds is holds
    assert claim.words() == [
        "it",
        f"at {'most' if most else 'least'} {bound:g}",
        "0.90",
        "0.10 to 2.00, 5 runs",
        "yes" if holds else "no",
    ]


def test_markdown_has_every_row_with_every_column() -> None:
    section = report.Section("x", "A | B", ("what", "MB/s"), ["a note"], [["read | write", "1"], ["other", "2"]])
    text = report.markdown(["command"], [report.Claim("it", 1, Spread(1, 1, 1, 1))], [section])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 3 + 4
    assert {row.replace("\\|", "").count("|") for row in rows[:3]} == {len(report.CLAIM_COLUMNS) + 1}
    assert {row.replace("\\|", "").count("|") for row in rows[3:]} == {3}
    assert "* a note" in text and "* command" in text


def test_a_document_takes_the_tables_between_its_marks(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_text("a\n<!-- begin: scripts/bench speed -->\nold\n<!-- end: scripts/bench speed -->\nb\n")
    for text in ("new\n", "newer | \\1\n"):
        report.put(document, "speed", text)
        kept = f"a\n<!-- begin: scripts/bench speed -->\n\n{text}\n<!-- end: scripts/bench speed -->\nb\n"
        assert document.read_text() == kept
    with pytest.raises(Failed, match="no place for loss"):
        report.put(document, "loss", "text")


def test_json_has_every_run() -> None:
    found = json.loads(json.dumps(plain({"floor": runs(1, 2)})))
    assert [run["bytes"] for run in found["floor"]] == [10**6, 2 * 10**6]
    assert set(found["floor"][0]) == {"seconds", "bytes", "operations", "cpu", "ksoftirqd", "others", "figures"}


# -- the command line ------------------------------------------------------------------------------------------------


def test_no_name_is_the_first_benchmark() -> None:
    assert command.with_name([]) == ["speed"]
    assert command.with_name(["--quick"]) == ["speed", "--quick"]
    assert command.with_name(["loss", "--quick"]) == ["loss", "--quick"]
    assert command.with_name(["--help"]) == ["--help"]


def test_rows_are_run_in_their_order() -> None:
    assert speed.chosen([]) == list(speed.ROWS)
    assert speed.chosen(["peers", "floor"]) == ["floor", "peers"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["speed", "flor"], "there is no row flor: the rows are floor,"),
        (["--rounds", "0"], "0 is not a number of runs: give 1 or more"),
        (["--seconds", "fast"], "fast is not a number of seconds"),
        (["--quiet", "20"], "20 is not a share: give 0 to 1"),
        (["sped"], "invalid choice: 'sped'"),
    ],
)
def test_refusals(
    words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scripts/bench", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code
    assert says in f"{capsys.readouterr().err} {ended.value.code}"


# -- anatomy ---------------------------------------------------------------------------------------------------------

TRIP = [  # who, file, call, from, to (us), result
    ("client", "stream", "writev", 0, 2, 28),
    ("bridge", "stream", "read", -90, 10, 28),
    ("bridge", "", "futex", 11, 12, 1),
    ("bridge", "packet", "sendmsg", 30, 45, 60),
    ("target", "epoll", "epoll_wait", -80, 40, 1),
    ("target", "packet", "sendmsg", 60, 75, 4132),
    ("bridge", "epoll", "epoll_wait", -70, 70, 1),
    ("bridge", "eventfd", "write", 90, 91, 8),
    ("bridge", "eventfd", "read", 46, 100, 8),
    ("bridge", "stream", "sendto", 105, 108, 16),
    ("bridge", "stream", "sendto", 108, 111, 4096),
    ("client", "stream", "recvfrom", 3, 115, 4112),
]


def calls(words: list[tuple[str, str, str, int, int, int]]) -> list[anatomy.Call]:
    return [
        anatomy.Call(who, file, name, enter / 1e6, leave / 1e6, result)
        for who, file, name, enter, leave, result in words
    ]


def test_a_round_trip_is_cut_at_its_marks() -> None:
    found = anatomy._cut(calls(TRIP))
    assert [round(1e6 * took) for _, took in found] == [10, 20, 10, 20, 10, 20, 10, 5, 10]
    assert [stage for stage, _ in found] == [mark.stage for mark in anatomy.MARKS[1:]]


def test_without_an_eventfd_its_stages_are_in_the_next_one() -> None:
    found = anatomy._cut(calls([call for call in TRIP if call[1] != "eventfd"]))
    assert [round(1e6 * took) for _, took in found] == [10, 20, 10, 20, 10, 35, 10]
    assert "no hand-over" in found[5][0]


def test_a_round_trip_with_a_hole_does_not_count() -> None:
    assert anatomy._cut(calls([call for call in TRIP if call[0] != "target"])) == []


def test_round_trips_are_told_apart() -> None:
    second = [(who, file, name, enter + 200, leave + 200, result) for who, file, name, enter, leave, result in TRIP]
    third = [(who, file, name, enter + 400, leave + 400, result) for who, file, name, enter, leave, result in TRIP[:1]]
    trips = [
        anatomy._cut(trip) for trip in anatomy._split(sorted(calls(TRIP + second + third), key=lambda call: call.enter))
    ]
    assert [round(1e6 * sum(took for _, took in trip)) for trip in trips] == [115, 115]


@pytest.mark.parametrize(
    ("line", "groups"),
    [
        (
            "12345 14200.263584: raw_syscalls:sys_enter: NR 0 (1f, 7f5e, 8)",
            ("12345", "14200", "263584", "enter", "0", "1f", None),
        ),
        ("   77     3.000001:  raw_syscalls:sys_exit: NR 46 = -11", ("77", "3", "000001", "exit", "46", None, "-11")),
    ],
)
def test_what_perf_prints(line: str, groups: tuple[str | None, ...]) -> None:
    match = anatomy._EVENT.match(line)
    assert match is not None
    assert match.groups() == groups


@pytest.mark.parametrize(
    ("sample", "kind"),
    [
        ("  ff1 finish_task_switch ([kernel])\n  ff2 do_futex ([kernel])\n  7f take_gil (libpython3.11.so)", "locks"),
        ("  ff1 __netif_receive_skb+0x5 ([kernel.kallsyms])\n  ff2 packet_sendmsg+0x7 ([kernel.kallsyms])", "packet socket"),
        ("  7f1 _PyEval_EvalFrameDefault (/usr/lib/libpython3.11.so.1.0)", "Python: objects, and what is interpreted"),
        ("  7f2 CPyDef_lock___f (/a/aoe_nbd_0__mypyc.cpython-311.so)", "the hot path's own code, compiled"),
        ("  ff1 page_fault ([kernel.kallsyms])", "the kernel otherwise"),
        ("", "other libraries"),
    ],
)  # fmt: skip
def test_a_sample_is_put_where_it_belongs(sample: str, kind: str) -> None:
    assert anatomy.kind(sample).startswith(kind)


def test_a_report_names_no_folder_of_this_machine() -> None:
    words = ["--out", "/somewhere", "floor", "--out=/else", "--rounds", "3"]
    assert common.command(words) == "scripts/bench floor --rounds 3"
