# SPDX-License-Identifier: BSD-3-Clause
"""The command line on a real LAN: Debian's vblade, our target, and our target behaving like the others."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from aoe_nbd.cli import main
from lab import PATIENCE, PYTHON, ROOT, Host, Lan, Process, Sniffer, run

Start = Callable[..., Process]
SIZE = 1 << 20
OTHER, THIRD = "02:00:00:00:00:07", "02:00:00:00:00:08"


@pytest.fixture
def mtu() -> int:
    return 1500


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(SIZE))
    return path


class Done:
    """A command that has ended."""

    def __init__(self, words: tuple[object, ...], status: int, out: str, err: str) -> None:
        self.words, self.status, self.out, self.err = words, status, out, err

    def ok(self) -> str:
        """What it printed, and nothing went wrong."""
        assert (self.status, self.err) == (0, ""), self
        return self.out

    def refused(self, naming: str) -> str:
        """Its one sentence."""
        assert self.status == 1 and self.err.count("\n") == 1 and naming in self.err, self
        assert self.err.startswith(f"aoe-nbd {self.words[0]}: "), self
        return self.err

    def __repr__(self) -> str:
        return f"{self.words}: status {self.status}\n{self.out}\n{self.err}"


class Cli:
    """`aoe-nbd` on a host."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def command(self, *words: object) -> list[str]:
        return self.host.command("env", f"PYTHONPATH={ROOT}", PYTHON, "-m", "aoe_nbd", *words)

    def __call__(self, *words: object) -> Done:
        """Run it in this process, which is many times faster than in one of its own."""
        out, err = io.StringIO(), io.StringIO()
        with self.host.entered(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([str(word) for word in words])
        return Done(words, status, out.getvalue(), err.getvalue())

    def apart(self, *words: object) -> Done:
        """Run it in a process of its own: for what programs that it starts print, and to try that this works at all."""
        done = subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return Done(words, done.returncode, done.stdout, done.stderr)


@pytest.fixture
def answers(initiator: Host) -> Iterator[Sniffer]:
    """What the targets say; `sniffer` has what they are asked."""
    sniffer = Sniffer(initiator)
    yield sniffer
    sniffer.close()


@pytest.fixture
def cli(initiator: Host) -> Cli:
    return Cli(initiator)


EVERYBODY = b"\xff" * 6


# -- discover and identify ---------------------------------------------------------------------------------------------


def test_discover_columns(
    vblade: Start, our_target: Start, disk: Path, cli: Cli, storage: Host, initiator: Host
) -> None:
    vblade(disk)
    our_target(disk, "--config-string", "a \x1b[2J", slot=1, shelf=2)
    head, first, second = cli.apart("discover").ok().splitlines()
    assert head.split() == ["ADDRESS", "SIZE", "MODEL", "SERIAL", "CONFIG", "BUF", "SEC", "MAC", "IF", "NOTE"]
    path = ["2", storage.mac, initiator.interface, "-"]
    assert first.split()[:3] == ["e1.0", "1.05", "MB"] and first.split()[-6:] == ["-", "16", *path]
    assert second.split()[:3] == ["e2.1", "1.05", "MB"] and second.split()[-6:] == [r"\x1b[2J", "64", *path]


def test_discover_json(target: Start, disk: Path, cli: Cli, storage: Host, initiator: Host) -> None:
    target(disk)
    (found,) = json.loads(cli("discover", "--json", "-i", initiator.interface).ok())
    assert found["address"] == "e1.0" and found["size"] == SIZE and not found["conflict"]
    assert found["macs"] == [storage.mac] and found["interfaces"] == [initiator.interface]
    assert found["sectors_per_frame"] == 2 and found["buffer_count"] in (16, 64) and found["serial"] and found["model"]
    (path,) = found["paths"]
    assert path["mtu"] == 1500 and path["error"] is None


def test_discover_one_shelf(our_target: Start, disk: Path, cli: Cli) -> None:
    our_target(disk, "--export", f"e1.1={disk}", "--export", f"e2.0={disk}")

    def addresses(which: str) -> list[str]:
        return [found["address"] for found in json.loads(cli("discover", which, "-t", "0.5", "--json").ok())]

    assert addresses("e1.255") == ["e1.0", "e1.1"]
    assert addresses("e65535.0") == ["e1.0", "e2.0"]
    assert addresses("e1.1") == ["e1.1"]


@pytest.mark.parametrize("like", ["vblade", "ggaoed", "qaoed", "kvblade"])
def test_every_kind_of_target_is_found(like: str, our_target: Start, disk: Path, cli: Cli) -> None:
    our_target(disk, "--like", like)
    (found,) = json.loads(cli("discover", "--json", "-t", "0.5").ok())
    assert found["size"] == SIZE
    assert found["model"] == {"vblade": "Coraid EtherDrive vblade", "qaoed": "123456789"}.get(like, like)
    assert cli("ping", "e1.0", "-c", "2", "--interval", "0.05").ok().startswith("e1.0 ")


def test_identify_is_never_sent_to_everybody(
    target: Start, disk: Path, cli: Cli, sniffer: Sniffer, initiator: Host
) -> None:
    target(disk)
    sniffer.frames()
    cli("discover", "-t", "0.5").ok()
    sent = sniffer.frames()
    ata = [f for f in sent if f[19] == 0]
    assert ata and all(f[:6] != EVERYBODY and f[16:19] == b"\x00\x01\x00" for f in ata)
    assert all(f[19] == 1 for f in sent if f[:6] == EVERYBODY)


def test_discover_nobody(cli: Cli, initiator: Host) -> None:
    done = cli("discover", "-t", "0.3")
    assert done.out == ""
    assert f"no target answered within 0.3 s on {initiator.interface}" in done.refused("check the")
    assert json.loads(cli("discover", "-t", "0.3", "--json").out) == []


@pytest.fixture
def switched() -> Iterator[Lan]:
    lan = Lan(1500, hosts=3)
    yield lan
    lan.close()


def test_two_disks_at_one_address(switched: Lan, our_target: Start, vblade: Start, disk: Path) -> None:
    here, one, two = switched.hosts
    our_target(disk, host=one)
    vblade(disk, host=two)
    cli = Cli(here)
    done = cli("discover", "-t", "0.5")
    done.refused("two different disks answer for e1.0")
    assert done.out.count("ANOTHER DISK HAS THIS ADDRESS TOO") == 2
    assert [found["conflict"] for found in json.loads(cli("discover", "-t", "0.5", "--json").out)] == [True, True]
    cli("identify", "e1.0").refused("two different disks answer for e1.0")
    assert "aoe-nbd target" in cli("identify", "e1.0", "--mac", one.mac).ok()
    cli("identify", "e1.0", "--mac", here.mac).refused(f"mac={here.mac} does not serve e1.0")
    for mac in (one.mac, two.mac):
        assert f"{mac} on eth0: 2 sent, 2 received" in cli("ping", "e1.0", "-c", "2", "--interval", "0.05").ok()


def test_identify(our_target: Start, vblade: Start, disk: Path, cli: Cli, storage: Host) -> None:
    our_target(disk, "--sync", "--read-only", "--serial", "SERIAL-1", "--config-string", "mine")
    vblade(disk, slot=1)
    shown = dict(line.strip().split(":", 1) for line in cli("identify", "e1.0").ok().splitlines()[1:])
    shown = {name: value.strip() for name, value in shown.items()}
    assert shown["serial"] == "SERIAL-1" and shown["access"] == "read-only" and shown["config string"] == "mine"
    assert shown["durability"] == "every acknowledged write is on stable storage"
    assert f"{SIZE} bytes, {SIZE // 512} sectors" in shown["size"] and shown["path"].startswith(storage.mac)
    (found,) = json.loads(cli("identify", "e1.1", "--json").ok())
    assert not found["flush_ext"] and found["flush"] and "not carried out" in found["durability"]


# -- ping --------------------------------------------------------------------------------------------------------------


def test_ping_sends_each_probe_once_and_counts_what_is_lost(
    our_target: Start, disk: Path, cli: Cli, sniffer: Sniffer, answers: Sniffer
) -> None:
    our_target(disk, "--fault", "in.loss=0.3,seed=5")
    sniffer.frames()
    done = cli("ping", "e1.0", "-c", "60", "--interval", "0.01", "-W", "0.5", "--json")
    found = json.loads(done.out)
    probes = [f for f in sniffer.frames() if f[:6] != EVERYBODY]
    tags = {f[20:24] for f in probes}
    answered = {f[20:24] for f in answers.frames()} & tags
    assert done.status == 0 and found["sent"] == len(probes) == len(tags) == 60
    assert found["received"] == len(answered) and found["lost"] == 60 - len(answered) and 0 < found["lost"] < 60
    assert found["loss"] == pytest.approx(found["lost"] / 60)
    rtt = found["rtt_ms"]
    assert rtt["min"] <= rtt["p50"] <= rtt["p95"] <= rtt["p99"] <= rtt["max"]
    assert all(tag[0] & 0x80 for tag in tags)


def test_ping_tells_duplicates(our_target: Start, disk: Path, cli: Cli) -> None:
    our_target(disk, "--fault", "out.dup=1,seed=1")
    found = json.loads(cli("ping", "e1.0", "-c", "5", "--interval", "0.1", "--json").ok())
    assert found["received"] == 5 and found["lost"] == 0 and found["duplicates"] >= 4


def test_ping_sizes(target: Start, disk: Path, cli: Cli, sniffer: Sniffer, answers: Sniffer) -> None:
    target(disk)
    quick = ("-c", "2", "--interval", "0.02")
    sniffer.frames()
    cli("ping", "e1.0", "-s", "1000", *quick).ok()
    probes = [f for f in sniffer.frames() if f[19] == 0]
    assert [len(f) for f in probes] == [1036, 1036] and {f[27] for f in probes} == {0xEC}
    cli("ping", "e1.0", "--read", "2", *quick).ok()
    assert {f[27] for f in sniffer.frames() if f[19] == 0} == {0x20}
    assert [len(f) for f in answers.frames() if f[19] == 0][-2:] == [1060, 1060]
    cli("ping", "e1.0", "--read", "3", *quick).refused("does not fit interface")
    cli("ping", "e1.0", "-s", "1479", *quick).refused("whose MTU is 1500, not 1501")


def test_ping_says_what_the_target_refuses(target: Start, disk: Path, cli: Cli) -> None:
    target(disk)
    cli("reserve", "e1.0", "--set", OTHER).ok()
    done = cli("ping", "e1.0", "--read", "1", "-c", "2", "--interval", "0.02")
    assert "2 received" in done.ok() and "2 refused" in done.out


def test_ping_nobody(cli: Cli) -> None:
    done = cli("ping", "e1.0", "-c", "3", "--interval", "0.02", "-W", "0.2")
    assert (done.status, done.out) == (1, "e1.0 by broadcast: 3 sent, 0 received, 100 % loss\n")


def test_ping_finds_a_target_that_comes_later(
    start: Start, our_target: Start, disk: Path, cli: Cli, tmp_path: Path, sniffer: Sniffer
) -> None:
    command = cli.command("ping", "e1.0", "--interval", "0.05", "-W", "0.2")
    ping = start(Process("ping", command, tmp_path / "ping.log"))
    sent: list[bytes] = []

    def some(more: Callable[[bytes], bool], count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while sum(more(f) for f in sent) < count:
            assert time.monotonic() < deadline, ping.output()
            sent.extend(sniffer.frames())
            time.sleep(0.01)

    some(lambda f: f[:6] == EVERYBODY, 10)
    our_target(disk)
    some(lambda f: f[:6] != EVERYBODY, 5)
    assert ping.stop(signal.SIGINT) == 0
    assert "e1.0 by broadcast" in ping.output() and "e1.0 in all" in ping.output() and "Traceback" not in ping.output()


def on_terminal(command: list[str]) -> tuple[int, str]:
    """Exit status and output of a command whose stdout and stderr are a terminal."""
    leader, follower = pty.openpty()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower) as process:
        os.close(follower)
        output = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while chunk := os.read(leader, 65536):
                output += chunk
    os.close(leader)
    return process.returncode, output.decode()


def test_a_terminal_gets_a_line_for_each_answer_and_a_table(target: Start, disk: Path, cli: Cli) -> None:
    target(disk)
    status, shown = on_terminal(cli.command("ping", "e1.0", "-c", "3", "--interval", "0.02"))
    assert status == 0 and [f"probe {i}: " in shown for i in (1, 2, 3, 4)] == [True, True, True, False]
    status, shown = on_terminal(cli.command("discover", "-t", "0.3"))
    assert status == 0 and "\x1b[" in shown and "listening 0.3 s" in shown and "e1.0" in shown


# -- config ------------------------------------------------------------------------------------------------------------


def test_config(target: Start, disk: Path, cli: Cli) -> None:
    target(disk)
    assert cli("config", "e1.0").ok() == "\n"
    assert cli("config", "set", "e1.0", "my lun").ok() == ""
    assert cli("config", "read", "e1.0").ok() == "my lun\n"
    cli("config", "set", "e1.0", "another").refused("has a config string already, so set is refused: it is 'my lun'")
    assert cli("config", "set", "e1.0", "my lun").ok() == ""
    assert cli("config", "test", "e1.0", "my lun").ok() == "my lun\n"
    cli("config", "test", "e1.0", "my").refused("no match: the config string of e1.0 is 'my lun'")
    assert cli("config", "prefix", "e1.0", "my").ok() == "my lun\n"
    cli("config", "prefix", "e1.0", "lun").refused("no match")
    assert cli("config", "fset", "e1.0", "x" * 1024).ok() == ""
    assert cli("config", "e1.0").ok() == "x" * 1024 + "\n"
    assert cli("config", "fset", "e1.0", "").ok() == ""
    assert cli("config", "test", "e1.0", "").ok() == "\n"


def test_config_of_many(our_target: Start, disk: Path, cli: Cli) -> None:
    our_target(disk, "--config-string", "one two")
    our_target(disk, "--config-string", "one", shelf=2)
    assert cli("config", "all").ok() == "e1.0\tone two\ne2.0\tone\n"
    assert cli("config", "test", "e65535.255", "one").ok() == "e2.0\tone\n"
    assert cli("config", "prefix", "e1.255", "one").ok() == "e1.0\tone two\n"
    cli("config", "test", "all", "three").refused("no match: no config string of any target is 'three'")


@pytest.mark.parametrize("like", ["ggaoed", "qaoed", "kvblade"])
def test_config_of_other_targets(like: str, our_target: Start, disk: Path, cli: Cli) -> None:
    our_target(disk, "--like", like)
    assert cli("config", "set", "e1.0", "mine").ok() == ""
    assert cli("config", "e1.0").ok() == "mine\n"
    cli("config", "set", "e1.0", "yours").refused("fset overwrites it")
    # qaoed refuses this with error 4, as any target may refuse the second copy of a set whose first copy worked.
    assert cli("config", "set", "e1.0", "mine").ok() == ""
    done = cli("config", "test", "e1.0", "mine")
    if like == "qaoed":
        done.refused("although its config string is 'mine' (qaoed does that)")
    else:
        assert done.ok() == "mine\n"


def test_trap_17_a_set_whose_first_answer_was_lost(
    our_target: Start, disk: Path, cli: Cli, sniffer: Sniffer, answers: Sniffer
) -> None:
    """Its copies are refused as "present", and yet it has worked."""
    for seed in range(20):
        process = our_target(disk, "--like", "qaoed", "--fault", f"out.loss=0.3,seed={seed}")
        sniffer.frames()
        assert cli("config", "set", "e1.0", "mine").ok() == "", seed
        process.stop()
        sets = [f for f in sniffer.frames() if f[19] == 1 and f[29] & 15 == 3]
        said = [f for f in answers.frames() if f[20:24] in {s[20:24] for s in sets}]
        if len(sets) > 1 and said and said[0][14] & 4 and said[0][15] == 4:
            return
    pytest.fail("no seed lost the answer to the first copy of a set")


# -- mask --------------------------------------------------------------------------------------------------------------


def test_mask(target: Start, disk: Path, cli: Cli, initiator: Host) -> None:
    target(disk)
    ours = initiator.mac
    assert cli("mask", "e1.0").ok() == "(empty: every host is served)\n"
    cli("mask", "e1.0", f"+{OTHER}").refused(f"without this host's {ours}")
    assert cli("mask", "e1.0").ok() == "(empty: every host is served)\n"
    assert cli("mask", "e1.0", f"+{OTHER}", f"+{ours}").ok() == f"{OTHER}\n{ours}\n"
    cli("mask", "e1.0", f"-{ours}").refused(f"add it by +{ours}, or give --force")
    assert cli("mask", "e1.0").ok() == f"{OTHER}\n{ours}\n"


def test_mask_of_our_target_shrinks_and_locks_out_on_demand(
    our_target: Start, disk: Path, cli: Cli, initiator: Host
) -> None:
    our_target(disk)
    ours = initiator.mac
    assert cli("mask", "e1.0", f"+{ours}", f"+{OTHER}", f"+{THIRD}").ok() == f"{ours}\n{OTHER}\n{THIRD}\n"
    assert cli("mask", "e1.0", f"-{THIRD}", "-i", initiator.interface, f"-{OTHER}").ok() == f"{ours}\n"
    assert cli("mask", "e1.0", f"-{ours}").ok() == "(empty: every host is served)\n"
    assert cli("mask", "e1.0", f"+{OTHER}", "--force").ok() == f"{OTHER}\n"
    cli("mask", "e1.0", "-t", "0.3").refused("no answer from e1.0")


def test_trap_18_vblade_corrupts_a_list_of_three(vblade: Start, disk: Path, cli: Cli, initiator: Host) -> None:
    vblade(disk)
    ours = initiator.mac
    cli("mask", "e1.0", f"+{ours}", f"+{OTHER}", f"+{THIRD}").refused("has made another list of it")


def test_mask_that_is_full(our_target: Start, disk: Path, cli: Cli, initiator: Host) -> None:
    """MError without the E flag, with the number of the edit that failed; a frame of MTU 1500 lists 185 hosts."""
    our_target(disk)
    hosts = [f"+02:00:00:00:01:{i:02x}" for i in range(0xB8)]
    cli("mask", "e1.0", f"+{initiator.mac}", *hosts[:100]).ok()
    cli("mask", "e1.0", *hosts[100:], f"+{OTHER}", f"+{THIRD}").refused(f"(+{OTHER}): the list is full")
    assert len(cli("mask", "e1.0").ok().splitlines()) == 185


@pytest.mark.parametrize("like", ["qaoed", "kvblade"])
def test_targets_without_mask_and_reservation(like: str, our_target: Start, disk: Path, cli: Cli) -> None:
    our_target(disk, "--like", like)
    cli("mask", "e1.0").refused("keeps no list of hosts")
    cli("reserve", "e1.0").refused("cannot be reserved")


# -- reserve -----------------------------------------------------------------------------------------------------------


def test_reserve(target: Start, disk: Path, cli: Cli, initiator: Host) -> None:
    target(disk)
    ours = initiator.mac
    assert cli("reserve", "e1.0").ok() == "(free: no host holds it)\n"
    assert cli("reserve", "e1.0", "--set", f"{ours},{OTHER}").ok() == f"{ours}\n{OTHER}\n"
    assert cli("reserve", "e1.0", "--release").ok() == "(free: no host holds it)\n"
    assert cli("reserve", "e1.0", "--set", OTHER).ok() == f"{OTHER}\n"
    for option in (["--release"], ["--set", ours]):
        cli("reserve", "e1.0", *option).refused(f"{OTHER} holds it; --force")
    assert cli("reserve", "e1.0").ok() == f"{OTHER}\n"
    assert cli("reserve", "e1.0", "--force", ours).ok() == f"{ours}\n"
    assert cli("reserve", "e1.0", "--force-release").ok() == "(free: no host holds it)\n"


def test_trap_19_ggaoed_refuses_the_owners_release(our_target: Start, disk: Path, cli: Cli, initiator: Host) -> None:
    our_target(disk, "--like", "ggaoed")
    cli("reserve", "e1.0", "--set", initiator.mac).ok()
    cli("reserve", "e1.0", "--release").refused("as ggaoed does: use --force-release")
    assert cli("reserve", "e1.0").ok() == f"{initiator.mac}\n"
    assert cli("reserve", "e1.0", "--force-release").ok() == "(free: no host holds it)\n"


def test_changes_survive_loss(our_target: Start, disk: Path, cli: Cli, initiator: Host) -> None:
    our_target(disk, "--fault", "loss=0.1,seed=3")
    ours = initiator.mac
    assert cli("config", "fset", "e1.0", "x").ok() == ""
    assert cli("mask", "e1.0", f"+{ours}", f"+{OTHER}").ok() == f"{ours}\n{OTHER}\n"
    assert cli("mask", "e1.0", f"-{OTHER}", f"-{ours}").ok() == "(empty: every host is served)\n"
    assert cli("reserve", "e1.0", "--set", OTHER).ok() == f"{OTHER}\n"
    assert cli("reserve", "e1.0", "--force-release").ok() == "(free: no host holds it)\n"


# -- several paths -----------------------------------------------------------------------------------------------------


def test_a_disk_on_two_paths(our_target: Start, disk: Path, cli: Cli, initiator: Host, storage: Host) -> None:
    """One target process on two networks: one disk, one config string, one list and one reservation."""
    peer = ("peer", "name", "far1", "netns", storage.namespace)
    initiator.ip("link", "add", "near1", "up", "type", "veth", *peer)
    storage.ip("link", "set", "far1", "up")
    our_target(disk, "--interface", "far1")
    near = Host(initiator.namespace, "near1")
    both = ("-i", f"{initiator.interface},near1")
    (found,) = json.loads(cli("discover", "-t", "0.5", "--json", *both).ok())
    assert found["interfaces"] == [initiator.interface, "near1"] and len(found["macs"]) == len(found["paths"]) == 2
    assert len(json.loads(cli("identify", "e1.0", "--json", *both).ok())) == 2
    pings = json.loads(cli("ping", "e1.0", "-c", "3", "--interval", "0.02", "--json", *both).ok())
    assert pings["sent"] == pings["received"] == 6 and [path["sent"] for path in pings["paths"]] == [3, 3]
    assert cli("config", "set", "e1.0", "mine", *both).ok() == ""
    assert cli("config", "e1.0", *both).ok() == "mine\n"
    # The second path is refused, for the first has the target held by a host that the second is not: that is no failure.
    shown = cli("reserve", "e1.0", "--set", initiator.mac, *both).ok().splitlines()
    assert [line.split(": ")[1] for line in shown] == [initiator.mac] * 2
    cli("reserve", "e1.0", "--release", *both).ok()
    cli("mask", "e1.0", f"+{initiator.mac}", *both).refused(f"without this host's {near.mac}")
    shown = cli("mask", "e1.0", f"+{initiator.mac}", "--force", *both).ok().splitlines()
    assert [line.split(": ")[1] for line in shown] == [initiator.mac] * 2
    assert cli("mask", "e1.0", "-i", initiator.interface).ok() == f"{initiator.mac}\n"


# -- serve and target --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(cli: Cli, tmp_path: Path, *words: object) -> Iterator[Path]:
    """`serve` in the background: its socket. nbdkit is ended afterwards, however the test goes."""
    path = tmp_path / "n b d" / "x.sock"
    pidfile = path.with_suffix(".pid")
    try:
        done = cli.apart("serve", "--socket", path, *words)
        assert done.status == 0, done
        assert f"socket: {path}\n" in done.out and f"kill {pidfile.read_text()}" in done.out
        assert f"nbd-client -unix '{path}'" in done.out
        yield path
    finally:
        if pidfile.exists():
            pid = int(pidfile.read_text())
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + PATIENCE
            while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not Path(f"/proc/{pid}").exists()


def uri(path: Path, export: str = "") -> str:
    return f"nbd+unix:///{export}?socket={quote(str(path))}"


def info(path: Path, export: str = "") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("nbdinfo", "--json", uri(path, export)))["exports"][0]
    return found


def test_serve(target: Start, disk: Path, cli: Cli, tmp_path: Path) -> None:
    target(disk)
    with served(cli, tmp_path, "e1.0") as path:
        assert info(path)["export-size"] == SIZE and not info(path)["is_read_only"]
        run("nbdcopy", uri(path), tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == disk.read_bytes()
        cli.apart("serve", "e1.0", "--socket", path).refused(f"something serves on {path} already")
    with served(
        cli, tmp_path, "e1.0", "--readonly", "--sectors", "1", "--", "--filter=log", f"logfile={tmp_path}/log"
    ) as path:
        assert info(path)["is_read_only"]
    assert "Connect" in (tmp_path / "log").read_text()


def test_serve_by_export_name(our_target: Start, disk: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(bytes(512 * 9))
    our_target(disk, "--export", f"e1.1={tmp_path / 'small'}")
    with served(cli, tmp_path, "--all-by-export-name") as path:
        assert info(path, "e1.0")["export-size"] == SIZE and info(path, "e1.1")["export-size"] == 512 * 9


def test_serve_in_the_foreground_is_nbdkit(target: Start, disk: Path, cli: Cli, tmp_path: Path, start: Start) -> None:
    target(disk)
    path = tmp_path / "x.sock"
    command = cli.command("serve", "e1.0", "--foreground", "--socket", path)
    process = start(Process("serve", command, tmp_path / "serve.log"))
    process.wait_for_socket(path)
    assert Path(f"/proc/{process.pid}/comm").read_text() == "nbdkit\n"
    assert info(path)["export-size"] == SIZE
    assert process.stop() == 0


def test_serve_that_fails_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.sock"
    done = cli.apart("serve", "e1.0", "--connect-timeout", "0.3", "--socket", path, "-i", cli.host.interface)
    assert done.status == 1 and done.err.count("\n") == 1 and "no answer from e1.0 within 0.3 s" in done.err
    assert not path.parent.exists() and done.out == ""


def test_target_is_a_verb(start: Start, storage: Host, disk: Path, cli: Cli, tmp_path: Path) -> None:
    command = Cli(storage).command("target", "--shelf", "3", "--slot", "4", "--interface", storage.interface, disk)
    process = start(Process("target", command, tmp_path / "target.log"))
    process.wait_for("serving e3.4")
    assert cli("ping", "e3.4", "-c", "1").ok()
    assert process.stop() == 0


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["discover", "identify", "ping", "config", "mask", "reserve"])
def test_no_such_interface(verb: str, cli: Cli) -> None:
    cli(verb, "e1.0", "-i", "no-such-if").refused("interface no-such-if does not exist")


def test_interfaces_that_cannot_be_used(cli: Cli, initiator: Host) -> None:
    name = initiator.interface
    cli("discover", "-i", "lo").refused("interface lo is the loopback")
    initiator.down()
    cli("discover", "-i", name).refused(f"interface {name} is down: bring it up with `ip link set {name} up`")
    cli("discover").refused("no Ethernet interface is up: say by -i which to use")
    initiator.up()
    initiator.ip("link", "add", "extra0", "up", "type", "veth", "peer", "name", "extra1")
    cli("discover").refused(f"2 Ethernet interfaces are up ({name}, extra0): say by -i which to use")


def test_no_privilege(cli: Cli, initiator: Host) -> None:
    words = cli.command("discover", "-i", initiator.interface)
    at = words.index("env")
    words[at:at] = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("aoe-nbd discover: no permission for a raw socket: run as root")


@pytest.mark.parametrize("verb", ["identify", "config", "mask", "reserve"])
def test_nobody_answers(verb: str, cli: Cli, initiator: Host) -> None:
    sentence = cli(verb, "e9.9", "-t", "0.3").refused("no answer from e9.9 within")
    assert f"on {initiator.interface}" in sentence and "discover" in sentence


def test_a_frame_that_does_not_fit(our_target: Start, disk: Path, cli: Cli, initiator: Host) -> None:
    our_target(disk)
    initiator.set_mtu(600)
    for words in (["set", "e1.0"], ["test", "all"]):
        cli("config", *words, "x" * 1024).refused("needs an MTU of 1042, and eth0 has 600")
    cli("mask", "e1.0", *[f"+02:00:00:00:01:{i:02x}" for i in range(80)]).refused("needs an MTU of 654")
    cli("reserve", "e1.0", "--set", ",".join(f"02:00:00:00:01:{i:02x}" for i in range(100))).refused(
        "needs an MTU of 612"
    )


def test_a_closed_pipe_is_quiet(target: Start, disk: Path, cli: Cli) -> None:
    target(disk)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        cli.command("discover", "-t", "0.2"), stdout=write, stderr=subprocess.PIPE, timeout=PATIENCE, check=False
    )
    os.close(write)
    assert done.stderr == b""
