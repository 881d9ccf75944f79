# SPDX-License-Identifier: BSD-3-Clause
"""What cannot work is refused at the start: one clear sentence, a failing exit status, and nothing left behind."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import nbd
import pytest

from lab import MIB, PLUGIN, Bridge, Host, Lan, Process, write_random

Start = Callable[..., Process]
Refuse = Callable[..., str]


@pytest.fixture
def mtu() -> int:
    return 1500


@pytest.fixture
def refuse(initiator: Host, tmp_path: Path) -> Refuse:
    """refuse("shelf=1", "slot=0"): the sentence with which nbdkit refuses these parameters."""

    def attempt(*parameters: str, drop: tuple[str, ...] = ()) -> str:
        socket = tmp_path / "nbd.sock"
        command = initiator.command(*drop, "nbdkit", "-f", "-U", socket, "python", PLUGIN, *parameters)
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode != 0
        assert not socket.exists()
        lines = [line for line in done.stderr.splitlines() if not line.startswith("aoe-nbd: ")]  # those are the log's
        assert len(lines) == 1, done.stderr
        assert done.stdout == ""
        return lines[0]

    return attempt


@pytest.fixture
def disk(folder: Path) -> Path:
    write_random(folder / "disk", MIB, seed=1)
    return folder / "disk"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("bogus=1", "unknown parameter bogus"),
        ("shelf=65535 slot=0", "shelf.*65534"),
        ("shelf=-1 slot=0", "shelf"),
        ("shelf=one slot=0", "shelf"),
        ("shelf=1 slot=255", "slot.*254"),
        ("shelf=1 slot=x", "slot"),
        ("shelf=1", "slot"),
        ("slot=1", "shelf"),
        ("target=1.0.0", "target|address"),
        ("target=e1.255", "slot|target|address"),
        ("target=e1.0 shelf=2 slot=0", "disagree"),
        ("mac=00:11:22:33:44 shelf=1 slot=0", "00:11:22:33:44"),
        ("mac=ff:ff:ff:ff:ff:ff shelf=1 slot=0", "ff:ff:ff:ff:ff:ff"),
        ("mac=02:00:00:00:00:01", "address"),
        ("sectors=0 shelf=1 slot=0", "sectors"),
        ("sectors=256 shelf=1 slot=0", "sectors"),
        ("readonly=maybe shelf=1 slot=0", "readonly"),
        ("on-dead=panic shelf=1 slot=0", "on-dead"),
        ("on-dead=fail-after=soon shelf=1 slot=0", "fail-after"),
        ("connect-timeout=-1 shelf=1 slot=0", "connect-timeout"),
        ("interface= shelf=1 slot=0", "interface"),
        ("interface=bogus0 shelf=1 slot=0", "bogus0 does not exist"),
        ("interface=lo shelf=1 slot=0", "loopback"),
    ],
)
def test_parameters(parameters: str, words: str, refuse: Refuse) -> None:
    assert re.search(words, refuse(*parameters.split(" ")))


def test_interface_that_is_down(refuse: Refuse, initiator: Host) -> None:
    initiator.down()
    assert "eth0 is down" in refuse("interface=eth0", "target=e1.0")


def test_no_interface_at_all(refuse: Refuse, initiator: Host) -> None:
    initiator.down()
    assert "interface" in refuse("target=e1.0")


def test_one_interface_needs_no_name(disk: Path, vblade: Start, start: Start, initiator: Host, tmp_path: Path) -> None:
    vblade(disk)
    socket = tmp_path / "nbd.sock"
    command = initiator.command("nbdkit", "-f", "-U", socket, "python", PLUGIN, "target=e1.0")
    process = start(Bridge(command, socket, tmp_path / "nbdkit.log"))
    process.wait_for_socket(socket)
    assert "eth0 is the only Ethernet interface" in process.output()


def test_two_interfaces_need_a_name(refuse: Refuse, initiator: Host) -> None:
    initiator.ip("link", "add", "other0", "type", "veth", "peer", "name", "other1")
    initiator.ip("link", "set", "other0", "up")
    initiator.ip("link", "set", "other1", "up")
    assert re.search("other0.*interface=", refuse("target=e1.0"))


def test_no_privilege(refuse: Refuse) -> None:
    drop = ("setpriv", "--bounding-set=-net_raw")  # still root, who may read the checkout wherever it lies
    assert "no permission for a raw socket" in refuse("interface=eth0", "target=e1.0", drop=drop)


def test_no_answer(refuse: Refuse) -> None:
    said = refuse("interface=eth0", "target=e1.0", "connect-timeout=1")
    for word in ("e1.0", "eth0", "discover"):
        assert word in said


def test_wrong_address(disk: Path, vblade: Start, refuse: Refuse) -> None:
    vblade(disk, slot=1)
    assert "e1.0" in refuse("interface=eth0", "target=e1.0", "connect-timeout=1")


def test_mac_that_serves_something_else(disk: Path, vblade: Start, refuse: Refuse, storage: Host) -> None:
    vblade(disk)
    said = refuse("interface=eth0", "target=e1.0", "mac=02:00:00:00:00:01", "connect-timeout=1")
    assert re.search(f"02:00:00:00:00:01 does not serve e1.0.*{storage.mac}", said)


def test_mtu_too_small_for_a_sector(disk: Path, vblade: Start, refuse: Refuse, initiator: Host) -> None:
    vblade(disk)
    initiator.set_mtu(500)
    assert "MTU" in refuse("interface=eth0", "target=e1.0", "connect-timeout=2")


@pytest.fixture
def three() -> Iterator[Lan]:
    lan = Lan(1500, hosts=3)
    yield lan
    lan.close()


def test_two_different_disks_at_one_address(
    three: Lan, folder: Path, target: Start, tmp_path: Path, bridge: Callable[..., Bridge]
) -> None:
    """Refused, unless `mac` says which; then the other one gets nothing."""
    client, one, other = three.hosts
    for i, host in enumerate((one, other)):
        write_random(folder / f"disk{i}", MIB * (1 + i), seed=i)
        target(folder / f"disk{i}", host=host)
    command = client.command(
        "nbdkit", "-f", "-U", tmp_path / "x.sock", "python", PLUGIN, f"interface={client.interface}", "target=e1.0"
    )
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert re.search("two different disks", done.stderr)
    assert one.mac in done.stderr
    assert other.mac in done.stderr

    before = (folder / "disk1").read_bytes()
    handle = nbd.NBD()
    handle.connect_uri(bridge(host=client, target="e1.0", mac=one.mac).uri())
    handle.pwrite(b"mine" * 128, 0)
    assert handle.pread(MIB, 0)[:512] == b"mine" * 128
    assert (folder / "disk0").read_bytes()[:512] == b"mine" * 128
    assert (folder / "disk1").read_bytes() == before
    handle.shutdown()


@pytest.mark.parametrize("buffers", [1, 2])
def test_a_target_with_hardly_any_buffers(
    buffers: int, disk: Path, vblade: Start, bridge: Callable[..., Bridge]
) -> None:
    vblade(disk, "-b", buffers)
    handle = nbd.NBD()
    handle.connect_uri(bridge().uri())
    handle.pwrite(b"few" * 1024, 512)
    assert handle.pread(MIB, 0) == disk.read_bytes()
    handle.shutdown()


def test_parameters_are_listed_by_dump_plugin(initiator: Host) -> None:
    dump = initiator.run("nbdkit", "--dump-plugin", "python", PLUGIN)
    for name in ("mac", "interface", "shelf", "slot", "target", "sectors", "readonly", "on_dead", "connect_timeout"):
        assert re.search(f"^aoe_{name}=", dump, re.MULTILINE)
