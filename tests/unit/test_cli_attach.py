# SPDX-License-Identifier: BSD-3-Clause
"""attach, detach, list and restart against a supervisor that is made up: who holds a disk, and what is left after a failure."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from aoe_nbd import cli
from aoe_nbd.cli import attach
from aoe_nbd.host import child, control, disks, holders, names, nbd, queue, service, sysfsview
from aoe_nbd.host.state import Folder, State, pair
from aoe_nbd.wire.address import Address, parse_address


class Supervisor:
    """One LUN's, with its lock and its control socket; what it says of its device is made up."""

    def __init__(self, host: Host, folder: Folder) -> None:
        self.host, self.folder, self.starts, self.state = host, folder, 1, "up"
        self.problem = ""
        self.options = [f"{key}={value}" for key, value in attach._options(folder, folder.options() or [])]
        self._life = contextlib.ExitStack()
        self._life.enter_context(folder.supervising())
        handlers = {"status": self.status, "detach": self.detach, "restart": self.restart}
        self._server = control.Server(str(folder.supervisor), handlers)
        self._server.start()
        index = host.devices.setdefault(str(folder.address), len(host.devices))
        folder.save(State(index, 1 << 20, "readonly=true" in self.options, options=self.options, since=1.0))

    def status(self, question: Mapping[str, Any]) -> dict[str, Any]:
        index = self.host.devices[str(self.folder.address)]
        return {
            "address": str(self.folder.address),
            "device": f"/dev/nbd{index}",
            "index": index,
            "options": self.options,
            "state": self.state,
            "problem": self.problem,
            "fenced": self.problem and "lost",
            "starts": self.starts,
        }

    def detach(self, question: Mapping[str, Any]) -> dict[str, Any]:
        self.host.did.append(f"detach {self.folder.address} force={question['force']}")
        del self.host.devices[str(self.folder.address)]
        return {}

    def restart(self, question: Mapping[str, Any]) -> dict[str, Any]:
        before = self.status(question)
        self.starts += 1
        return before

    def end(self) -> None:
        self._server.close()
        self._life.close()


class Host:
    """The machine. `did` is what was done to it."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.devices: dict[str, int] = {}
        self.supervisors: dict[str, Supervisor] = {}
        self.users: list[str] = []
        self.flushes = True
        self.silent: set[str] = set()  # targets that nobody finds
        self.systemd = False

    def start(self, folder: Folder, patience: float) -> None:
        address = str(folder.address)
        self.did.append(f"start {address}")
        if address in self.silent:
            folder.fail(f"no answer from {address}")
            raise service.ServiceError(5, folder.failure())
        self.supervisors[address] = Supervisor(self, folder)

    def stop(self, folder: Folder, patience: float = 0) -> None:
        supervisor = self.supervisors.pop(str(folder.address), None)
        if supervisor is not None:
            supervisor.end()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("AOE_NBD_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("AOE_NBD_ETC", str(tmp_path))
    monkeypatch.delenv("AOE_NBD_LOCK", raising=False)
    host = Host()
    monkeypatch.setattr(service, "start", host.start)
    monkeypatch.setattr(service, "stop", host.stop)
    monkeypatch.setattr(service, "managed", lambda: host.systemd)
    monkeypatch.setattr(disks, "holding", lambda name: [host.devices[name]] if name in host.devices else [])
    monkeypatch.setattr(disks, "size_of", lambda index: 1 << 20)
    monkeypatch.setattr(disks, "read_only", lambda index: False)
    monkeypatch.setattr(disks, "flush", lambda index, in_vain: host.did.append("flush") or host.flushes)
    monkeypatch.setattr(holders, "users", lambda disk: host.users)
    monkeypatch.setattr(attach, "_see", lambda status: None)
    monkeypatch.setattr(names, "remove", lambda address, index: host.did.append("no names"))
    monkeypatch.setattr(sysfsview, "remove", lambda address, root: None)
    yield host
    for supervisor in host.supervisors.values():
        supervisor.end()


def run(*words: str) -> int:
    return cli.main(words)


def held(address: str = "e1.0") -> dict[str, int]:
    return Folder(parse_address(address)).holders()


def test_attached_twice_and_detached_twice(host: Host, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("attach", "e1.0", "-i", "eth1") == 0
    assert run("attach", "e1.0") == 0
    assert capsys.readouterr().out == "/dev/nbd0\n/dev/nbd0\n"
    assert host.did == ["start e1.0"] and held() == {"operator": 2}
    assert run("detach", "e1.0") == 0
    assert "e1.0 stays attached: held by operator" in capsys.readouterr().err
    assert host.did == ["start e1.0"] and held() == {"operator": 1}
    assert run("detach", "e1.0") == 0
    assert host.did[1:3] == ["flush", "detach e1.0 force=False"]
    assert not (tmp_path / "run").exists()


def test_a_named_holder_counts_once(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run("attach", "e1.0", "--holder", "xen:5") == 0
    assert run("attach", "e1.0", "--holder", "xen:6") == 0
    assert held() == {"xen:5": 1, "xen:6": 1}
    assert run("detach", "e1.0") == 1
    assert "e1.0 is not held by operator but by xen:5, xen:6" in capsys.readouterr().err
    assert run("detach", "e1.0", "--holder", "xen:5") == 0
    assert host.devices == {"e1.0": 0}
    assert run("detach", "e1.0", "--all-holders") == 0
    assert host.devices == {}


@pytest.mark.parametrize("name", ["", "a b", "x\n", "é", "-" * 201])
def test_bad_holders(host: Host, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run("attach", "e1.0", f"--holder={name}") == 1
    assert "is not usable" in capsys.readouterr().err and host.did == []


def test_a_failed_attach_leaves_nothing(host: Host, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    host.silent.add("e1.0")
    assert run("attach", "e1.0", "-i", "eth1") == 1
    captured = capsys.readouterr()
    assert captured.err == "aoe-nbd attach: no answer from e1.0\n" and captured.out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "which disk?"),
        (("e1.0", "--all"), "--all takes the disks and their options from the table"),
        (("--all", "--read-only"), "--all takes the disks and their options from the table"),
        (("e1",), "'e1' is not an AoE address"),
        (("e1.0", "--on-dead", "maybe"), "on-dead=maybe is unknown"),
        (("e1.0", "--mac", "01"), "mac=01 is not a MAC address"),
    ],
)
def test_bad_input(host: Host, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], sentence: str) -> None:
    assert run("attach", *words) == 1
    assert sentence in capsys.readouterr().err and host.did == []


def test_options_become_the_bridges(host: Host) -> None:
    assert run("attach", "e1.0", "-i", "eth1", "--read-only", "--on-dead", "fail-after=3") == 0
    assert host.supervisors["e1.0"].options == ["interface=eth1", "readonly=true", "on-dead=fail-after=3"]


def test_not_both_ways(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("attach", "e1.0", "--read-only") == 0
    assert run("attach", "e1.0") == 1
    assert "e1.0 is attached read-only as /dev/nbd0 (held by operator): detach it" in capsys.readouterr().err
    assert held() == {"operator": 1}
    assert run("attach", "e1.0", "--read-only", "--on-dead", "fail") == 0
    assert "keeps the options it has: readonly=true" in capsys.readouterr().err


def test_the_table(host: Host, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "aoetab").write_text("e1.0 readonly\ne1.1\ne1.2 noauto\ne1.3 bad=1\n")
    host.silent.add("e1.1")
    assert run("attach", "--all") == 1
    captured = capsys.readouterr()
    assert captured.out == "e1.0 /dev/nbd0\n"
    assert "aoetab, line 4, field 'bad=1'" in captured.err and "no answer from e1.1" in captured.err
    assert held("e1.0") == {"aoetab": 1} and held("e1.1") == {}
    assert sorted(host.did) == ["start e1.0", "start e1.1"]
    assert run("attach", "e1.0", "--read-only") == 0, "the table says read-only too"
    assert run("attach", "--all") == 1
    assert held("e1.0") == {"aoetab": 1, "operator": 1}


def test_a_service_that_systemd_keeps_trying_is_left_to_it(host: Host, tmp_path: Path) -> None:
    (tmp_path / "aoetab").write_text("e1.1\n")
    host.silent.add("e1.1")
    host.systemd = True
    assert run("attach", "--all") == 1
    assert held("e1.1") == {"aoetab": 1}
    assert run("attach", "e1.1") == 1
    assert not (tmp_path / "run" / "e1.1").exists()


def test_a_device_without_a_supervisor_is_gone_on_with(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("attach", "e1.0", "-i", "eth1") == 0
    host.supervisors.pop("e1.0").end()
    capsys.readouterr()
    assert run("attach", "e1.0") == 0
    captured = capsys.readouterr()
    assert captured.out == "/dev/nbd0\n" and "was left without a supervisor" in captured.err
    assert host.supervisors["e1.0"].options == ["interface=eth1"], "the options it had"
    host.supervisors.pop("e1.0").end()
    host.silent.add("e1.0")
    assert run("attach", "e1.0") == 1
    assert held() == {"operator": 2} and host.devices == {"e1.0": 0}, "the disk is not given up"


def test_in_use(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    run("attach", "e1.0")
    host.users = ["mounted on /srv"]
    assert run("detach", "e1.0") == 1
    assert "e1.0 is in use: mounted on /srv; end that first" in capsys.readouterr().err
    assert held() == {"operator": 1} and host.did == ["start e1.0"]
    assert run("detach", "e1.0", "--force") == 0
    assert "detach e1.0 force=True" in host.did and "flush" not in host.did


def test_not_flushed(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    run("attach", "e1.0")
    host.flushes = False
    assert run("detach", "e1.0") == 1
    assert "/dev/nbd0 could not be flushed" in capsys.readouterr().err and host.devices == {"e1.0": 0}


def test_what_another_host_has_taken_over_is_not_attached_again(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    run("attach", "e1.0")
    host.supervisors["e1.0"].problem = "taken over by b (epoch 2, held); requests fail: detach it here"
    assert run("attach", "e1.0") == 1
    assert "e1.0 is attached as /dev/nbd0, but taken over by b (epoch 2, held)" in capsys.readouterr().err
    assert held() == {"operator": 1}


def test_not_served(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    run("attach", "e1.0")
    host.supervisors["e1.0"].state = "held"
    assert run("detach", "e1.0") == 1
    assert "e1.0 is not served just now: wait until" in capsys.readouterr().err and host.did == ["start e1.0"]


def test_not_attached(host: Host, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("detach", "e1.0") == 1
    assert "e1.0 is not attached" in capsys.readouterr().err
    assert run("restart", "e1.0") == 1
    assert "e1.0 has no supervisor here" in capsys.readouterr().err
    assert run("restart", "--all") == 0
    assert run("list") == 0
    assert not (tmp_path / "run").exists()


def test_detach_without_a_supervisor(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run("attach", "e1.0")
    folder = Folder(Address(1, 0))
    folder.save(State(0, 1, False, bridge=77, bridge_began=5, queue={"scheduler": "x"}))
    host.supervisors.pop("e1.0").end()

    class Kernel:
        def disconnect(self, index: int) -> None:
            host.did.append(f"disconnect {index}")

        def close(self) -> None:
            pass

    monkeypatch.setattr(nbd, "Kernel", Kernel)
    monkeypatch.setattr(child, "end_orphan", lambda pid, start: host.did.append(f"end {pid} {start}"))
    monkeypatch.setattr(queue, "restore", lambda index, before: host.did.append(f"restore {index} {before}"))
    assert run("detach", "e1.0") == 1
    assert "e1.0 has no supervisor: `aoe-nbd attach e1.0` goes on with it" in capsys.readouterr().err
    assert run("detach", "e1.0", "--force") == 0
    assert host.did[1:] == ["end 77 5", "disconnect 0", "restore 0 {'scheduler': 'x'}", "no names"]
    assert not (tmp_path / "run").exists()


def test_list(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    run("attach", "e1.0")
    run("attach", "e1.1")
    run("attach", "e1.1")
    host.supervisors.pop("e1.1").end()
    capsys.readouterr()
    assert run("list", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["address"], first["device"], first["state"], first["holders"]) == (
        *("e1.0", "/dev/nbd0", "up"),
        {"operator": 1},
    )
    assert (second["address"], second["state"], second["supervisor"]) == ("e1.1", "stale", None)
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["DISK", "DEVICE", "SIZE", "MODE", "STATE"]
    assert "operator (2)" in lines[2]


def test_restart(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    for address in ("e1.0", "e1.1", "e1.2"):
        run("attach", address)
    host.supervisors.pop("e1.2").end()
    assert run("restart", "e1.0") == 0
    assert run("restart", "--all") == 0
    assert [host.supervisors[name].starts for name in ("e1.0", "e1.1")] == [3, 2]
    assert run("restart") == 1 and run("restart", "e1.0", "--all") == 1


def test_a_daemon_says_why_it_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AOE_NBD_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(service, "managed", lambda: False)
    folder = Folder(Address(1, 0))
    folder.path.mkdir(parents=True)

    def command(script: str) -> list[str]:
        return [sys.executable, "-c", f"from aoe_nbd.host import service, state; {script}"]

    fails = (
        f"state.Folder({tuple(folder.address)!r}).path; open({str(folder.path / 'failure')!r}, 'w').write('no target')"
    )
    monkeypatch.setattr(service, "command", lambda address: command(f"{fails}; raise SystemExit(1)"))
    with pytest.raises(service.ServiceError, match="no target"):
        service.start(folder, 60)
    record = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getsid(0)))"
    monkeypatch.setattr(service, "command", lambda address: command(f"service.notify('READY=1\\nSTATUS=x'); {record}"))
    service.start(folder, 60)
    assert folder.failure() == ""


def test_what_a_supervisor_runs_with() -> None:
    assert pair("on-dead=fail-after=3") == ("on-dead", "fail-after=3")
    assert service.command(Address(1, 0))[-2:] == ["run", "e1.0"]
