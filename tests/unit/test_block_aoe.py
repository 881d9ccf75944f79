# SPDX-License-Identifier: BSD-3-Clause
"""Xen's hotplug script: what it makes of a disk's line, who may share a LUN, what is mended, and what libxl is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xenstore_kit import Xenstored

from aoe_nbd.cli import xen as face
from aoe_nbd.cli.failure import Failure
from aoe_nbd.host import disks, holders, state, xen, xenstore
from aoe_nbd.wire.address import Address

ROOT = Path(__file__).resolve().parents[2]
E1_0 = Address(1, 0)
UUID, OTHER = "7d3b2f6e-0000-4000-8000-1234567890ab", "11111111-2222-4333-8444-555555555555"
DISK = 51712  # xvda


@pytest.fixture
def xenstored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Xenstored]:
    daemon = Xenstored(tmp_path)
    monkeypatch.setenv("XENSTORED_PATH", daemon.path)
    yield daemon
    daemon.close()


class Host:
    """This host: what is attached, and by which options. Devices are /dev/null."""

    def __init__(self) -> None:
        self.options: dict[Address, state.Pairs] = {}
        self.users: list[str] = []
        self.did: list[str] = []
        self.fails = ""
        self.running = True

    def attach(
        self,
        address: Address,
        given: state.Pairs,
        holder: str,
        *,
        once: bool,
        admit: Callable[[state.Folder], None],
    ) -> str:
        folder = state.Folder(address)
        admit(folder)
        if self.fails:
            raise Failure(self.fails)
        self.did.append(f"attach {address} for {holder}")
        self.options.setdefault(address, given)
        folder.save(state.State(0, 1, False, options=[f"{k}={v}" for k, v in self.options[address]]))
        folder.hold({**folder.holders(), holder: 1})
        return "/dev/null"

    def detach(self, address: Address, holder: str) -> dict[str, int]:
        folder = state.Folder(address)
        if not self.running and list(folder.holders()) == [holder]:
            raise Failure("it has no supervisor")
        left = folder.holders()
        del left[holder]
        self.did.append(f"detach {address} for {holder}")
        if left:
            folder.hold(left)
        else:
            folder.remove()
            del self.options[address]
        return left


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setenv("AOE_NBD_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("AOE_NBD_ETC", str(tmp_path))
    monkeypatch.setattr(xen, "SYS", tmp_path / "sys")
    monkeypatch.setattr(xen, "GONE", 0.2)
    monkeypatch.setattr(face, "LOG", str(tmp_path / "xen-hotplug.log"))
    monkeypatch.setattr(face, "attach", host.attach)
    monkeypatch.setattr(face, "detach", host.detach)
    monkeypatch.setattr(
        disks, "holding", lambda name: [0] if Address(*map(int, name[1:].split("."))) in host.options else []
    )
    monkeypatch.setattr(holders, "lasting", lambda disk: host.users)
    monkeypatch.setattr(state.Folder, "running", lambda folder: 1 if host.running else None)
    return host


@pytest.fixture
def script(xenstored: Xenstored, host: Host, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], int]:
    """script(action, XENBUS_PATH): its exit status. Every call is as young as a process of its own would be."""

    def run(action: str, path: str) -> int:
        began = time.monotonic()
        monkeypatch.setattr(face, "_age", lambda: time.monotonic() - began)
        monkeypatch.setattr(sys, "argv", ["block-aoe", action])
        monkeypatch.setenv("XENBUS_PATH", path)
        return face.main()

    return run


Script = Callable[[str, str], int]


def held(address: Address = E1_0) -> list[str]:
    return list(state.Folder(address).holders())


# -- xenstore ----------------------------------------------------------------------------------------------------------


def test_the_store(xenstored: Xenstored) -> None:
    store = xenstore.Store()
    assert store.read("backend/x") is None and store.children("backend/x") == []
    store.write("backend/x/a", "1")
    store.write("backend/x/b/c", "")
    assert (store.read("backend/x/a"), store.read("/local/domain/0/backend/x/a"), store.read("backend/x/b/c")) == (
        "1",
        "1",
        "",
    )
    assert store.children("backend/x") == ["a", "b"]
    store.remove("backend/x")
    store.remove("backend/x")
    assert store.children("backend") == []
    assert store.exists(0) and not store.exists(5)
    xenstored.refuse = "EACCES"
    with pytest.raises(xenstore.StoreError, match="refuses READ of backend/x: EACCES") as caught:
        store.read("backend/x")
    assert caught.value.errno == 13
    store.close()


def test_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENSTORED_PATH", str(tmp_path / "none"))
    with pytest.raises(xenstore.StoreError, match=r"cannot be reached at .*/none .*: is this a Xen dom0"):
        xenstore.Store()


# -- what a disk's line asks for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "mode", "access", "options"),
    [
        ("e1.0", "w", "w", ["fence=auto", f"owner-tag={UUID}"]),
        ("e1.0;fence=warn;interface=eth1,eth2", "w", "w", ["fence=warn", "interface=eth1,eth2", f"owner-tag={UUID}"]),
        (" e1.0 ; on-dead=fail ;", "w", "w", ["on-dead=fail", "fence=auto", f"owner-tag={UUID}"]),
        ("e1.0;owner-tag=x", "w", "w", ["owner-tag=x", "fence=auto"]),
        ("e1.0", "r", "r", ["readonly=true", "fence=auto"]),
        ("e1.0;fence=off", "r", "r", ["fence=off", "readonly=true"]),
        ("e1.0;w!", "w", "w!", []),
        ("e1.0", "w!", "w!", []),
    ],
)
def test_options(host: Host, params: str, mode: str, access: str, options: list[str]) -> None:
    found = xen.wanted(params, mode, UUID)
    assert (found.address, found.access, [f"{k}={v}" for k, v in found.options]) == (E1_0, access, options)


def test_this_host_has_no_tag(host: Host) -> None:
    assert xen.wanted("e1.0", "w", None).options == [("fence", "auto")]


def test_options_of_the_table_hold_as_well(host: Host, tmp_path: Path) -> None:
    (tmp_path / "aoetab").write_text("e1.0 interface=eth1 mac=02:00:00:00:00:01 fence=enforce on-dead=fail noauto\n")
    found = xen.wanted("e1.0;netif=eth2;on-dead=hold", "w", UUID)
    assert [f"{k}={v}" for k, v in found.options] == [
        "mac=02:00:00:00:00:01",
        "fence=enforce",
        "netif=eth2",
        "on-dead=hold",
        f"owner-tag={UUID}",
    ]
    assert ("fence", "enforce") not in xen.wanted("e1.0;w!", "w", UUID).options
    (tmp_path / "aoetab").write_text("e1.0 readonly noauto\n")
    assert xen.wanted("e1.0", "r", UUID).options == [("readonly", "true"), ("fence", "auto")]
    with pytest.raises(xen.Refusal, match=r"e1.0 is read-only on this host \(.*aoetab, line 1\): give access=r"):
        xen.wanted("e1.0", "w", UUID)


@pytest.mark.parametrize(
    ("params", "mode", "sentence"),
    [
        ("disk1", "w", "target=disk1, field 'disk1': 'disk1' is not an AoE address"),
        ("e1.0;colour=blue", "w", "field 'colour=blue': there is no such option: there are mac, interface"),
        ("e1.0;control=/x", "w", "field 'control=/x': there is no such option"),
        ("e1.0;fence=high", "w", "fence=high is unknown"),
        ("e1.0;readonly", "w", "readonly is said by access=r, not here"),
        ("e1.0;w!;fence=warn", "w", "fence= is for one writer, and w! for several"),
        ("e1.0;w!", "r", "w! shares a disk for writing, so it goes with access=w only"),
    ],
)
def test_bad_lines(script: Script, xenstored: Xenstored, host: Host, params: str, mode: str, sentence: str) -> None:
    xenstored.domain(5, "d1", UUID)
    path = xenstored.vbd(5, DISK, params, mode)
    assert script("add", path) == 1
    said = xenstored.says(path)
    assert sentence in said["hotplug-error"] and "\n" not in said["hotplug-error"]
    assert said["hotplug-status"] == "error" and "physical-device" not in said
    assert host.did == []


# -- add and remove ----------------------------------------------------------------------------------------------------


def test_add_and_remove(script: Script, xenstored: Xenstored, host: Host, tmp_path: Path) -> None:
    xenstored.domain(5, "d1", UUID)
    path = xenstored.vbd(5, DISK, "e1.0")
    for _ in range(2):
        assert script("add", path) == 0
        said = xenstored.says(path)
        assert said["physical-device"] == "1:3" and said["physical-device-path"] == "/dev/null"
        assert said["hotplug-status"] == "connected" and "hotplug-error" not in said
        assert held() == ["xen:5:51712"]
    for _ in range(2):
        assert script("remove", path) == 0
        assert held() == []
    assert host.did.count("detach e1.0 for xen:5:51712") == 1
    log = (tmp_path / "xen-hotplug.log").read_text().splitlines()
    assert len(log) == 4 and "block-aoe add backend/vbd/5/51712: /dev/null" in log[0]


def test_removed_though_its_nodes_are_gone(script: Script, xenstored: Xenstored, host: Host) -> None:
    xenstored.domain(5, "d1", UUID)
    for devid, params in ((DISK, "e1.0"), (DISK + 16, "e1.1")):
        assert script("add", xenstored.vbd(5, devid, params)) == 0
    xenstored.ends(5)
    assert script("remove", "backend/vbd/5/51728") == 0
    assert held() == ["xen:5:51712"] and held(Address(1, 1)) == []
    assert not any("backend" in name for name in xenstored.nodes), "remove makes no nodes"


def test_pygrub_looks_into_the_disk_first(script: Script, xenstored: Xenstored, host: Host) -> None:
    """libxl attaches it to dom0, removes it from there, and then adds it for the guest."""
    dom0, guest = xenstored.vbd(0, DISK, "e1.0"), xenstored.vbd(5, DISK, "e1.0")
    xenstored.domain(5, "d1", UUID)
    assert script("add", dom0) == 0
    assert host.options[E1_0] == [("fence", "auto")]
    assert script("add", guest) == 1
    assert "is in use by domain 0 as xvda" in xenstored.says(guest)["hotplug-error"]
    assert script("remove", dom0) == 0 and script("add", guest) == 0
    assert dict(host.options[E1_0])["owner-tag"] == UUID


def test_what_attach_says_is_what_libxl_is_told(script: Script, xenstored: Xenstored, host: Host) -> None:
    xenstored.domain(5, "d1", UUID)
    host.fails = "no answer from e1.0 within 10 s on eth1"
    path = xenstored.vbd(5, DISK, "e1.0")
    assert script("add", path) == 1
    assert xenstored.says(path)["hotplug-error"] == host.fails
    host.fails = ""
    assert script("add", path) == 0


def test_it_gives_up_before_libxl_kills_it(
    script: Script, xenstored: Xenstored, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    undone: list[str] = []

    def attach(*args: Any, **named: Any) -> str:
        try:
            with open(os.pipe()[0]) as never:
                return never.read()
        except BaseException:
            undone.append(xenstored.says(path)["hotplug-error"])  # libxl may kill us from now on
            raise

    monkeypatch.setattr(face, "attach", attach)
    monkeypatch.setattr(face, "LIMIT", 1.0)
    xenstored.domain(5, "d1", UUID)
    path = xenstored.vbd(5, DISK, "e1.0")
    assert script("add", path) == 1
    assert xenstored.says(path)["hotplug-error"].startswith("not done within ")
    assert undone == [xenstored.says(path)["hotplug-error"]]


def test_the_limit_counts_from_the_process_start() -> None:
    """Python's own start is in it, and what the calling shell did before the exec."""
    code = "import time; from aoe_nbd.cli import xen; a = xen._age(); time.sleep(0.5); print(a, xen._age())"
    begun = time.monotonic()
    said = subprocess.run(
        ["sh", "-c", f"sleep 1; exec {sys.executable} -c '{code}'"], cwd=ROOT, capture_output=True, text=True
    )
    first, second = map(float, said.stdout.split())
    assert 1.0 <= first <= second - 0.5 <= time.monotonic() - begun


def test_no_such_action_or_path(script: Script, xenstored: Xenstored, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("online", "backend/vbd/5/51712") == 1
    assert "libxl calls it, with add or remove" in capsys.readouterr().err
    assert script("add", "backend/vif/5/0") == 1
    assert "XENBUS_PATH=backend/vif/5/0 is not that of a disk" in capsys.readouterr().err
    assert script("add", "backend/vbd/5/51712") == 1
    assert "xenstore has no target for backend/vbd/5/51712" in capsys.readouterr().err


# -- sharing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "here", "two_vms", "one_vm"),
    [
        (("e1.0", "w"), ("e1.0", "w"), False, True),
        (("e1.0", "w"), ("e1.0", "r"), False, True),
        (("e1.0", "r"), ("e1.0", "w"), False, False),
        (("e1.0", "r"), ("e1.0", "r"), True, True),
        (("e1.0;w!", "w"), ("e1.0;w!", "w"), True, True),
        (("e1.0;w!", "w"), ("e1.0", "w"), False, False),
        (("e1.0;w!", "w"), ("e1.0", "r"), False, True),
        (("e1.0;fence=off", "w"), ("e1.0;fence=off", "w"), False, True),
        (("e1.0", "w"), ("e1.1", "w"), True, True),
    ],
)
@pytest.mark.parametrize("uuid", [OTHER, UUID])
def test_two_domains(
    script: Script,
    xenstored: Xenstored,
    host: Host,
    there: tuple[str, str],
    here: tuple[str, str],
    two_vms: bool,
    one_vm: bool,
    uuid: str,
) -> None:
    """Of two VMs; or of one, which is moving to this same host."""
    xenstored.domain(5, "d1", UUID)
    xenstored.domain(6, "d2", uuid)
    assert script("add", xenstored.vbd(5, DISK, *there)) == 0
    path = xenstored.vbd(6, DISK, *here, vdev="xvdb")
    goes = one_vm if uuid == UUID else two_vms
    assert (script("add", path) == 0) is goes
    if not goes:
        assert held() == ["xen:5:51712"]
    if not goes and uuid != UUID:
        how = "" if here[1] == "w" else " for writing"
        sentence = f"e1.0 is in use{how} by domain d1 as xvda: shut it down, or `xl block-detach d1 xvda`, first"
        assert xenstored.says(path)["hotplug-error"] == sentence


def test_a_stub_domain_is_of_its_domains_vm(script: Script, xenstored: Xenstored, host: Host) -> None:
    xenstored.domain(5, "d1", UUID)
    xenstored.domain(6, "d1-dm", OTHER)
    xenstored.nodes["/local/domain/6/target"] = "5"
    assert script("add", xenstored.vbd(6, DISK, "e1.0")) == 0
    assert dict(host.options[E1_0])["owner-tag"] == UUID
    assert script("add", xenstored.vbd(5, DISK, "e1.0")) == 0


def test_in_use_by_this_host(script: Script, xenstored: Xenstored, host: Host) -> None:
    xenstored.domain(5, "d1", UUID)
    host.options[E1_0] = []
    state.Folder(E1_0).hold({"operator": 1})
    host.users = ["mounted on /srv", "swap on nbd0p2"]
    path = xenstored.vbd(5, DISK, "e1.0;fence=off")
    assert script("add", path) == 1
    sentence = "e1.0 is in use on this host, mounted on /srv, swap on nbd0p2: end that first"
    assert xenstored.says(path)["hotplug-error"] == sentence


def test_a_domain_by_phy_is_a_user_as_well(script: Script, xenstored: Xenstored, host: Host) -> None:
    xenstored.domain(5, "d1", UUID)
    xenstored.domain(6, "d1--incoming", UUID)
    xenstored.domain(7, "d2", OTHER)
    assert script("add", xenstored.vbd(5, DISK, "e1.0")) == 0
    host.users = ["Xen domain 5"]
    assert script("add", xenstored.vbd(6, DISK, "e1.0")) == 0
    host.users = ["Xen domain 5", "Xen domain 7"]
    path = xenstored.vbd(6, DISK + 16, "e1.0")
    assert script("add", path) == 1
    assert xenstored.says(path)["hotplug-error"] == "e1.0 is in use on this host, Xen domain 7: end that first"


def test_the_vms_own_device_model_is_no_stranger(script: Script, xenstored: Xenstored, host: Host) -> None:
    xenstored.domain(5, "d1", UUID)
    xenstored.domain(6, "d1--incoming", UUID)
    host.options[E1_0] = [("fence", "auto"), ("owner-tag", UUID)]
    host.users = ["open in qemu-system-i38 (77)"]
    assert script("add", xenstored.vbd(5, DISK, "e1.0")) == 1, "nothing of the VM is there yet"
    host.users = []
    assert script("add", xenstored.vbd(5, DISK, "e1.0")) == 0
    host.users = ["Xen domain 5", "open in qemu-system-i38 (77)"]
    assert script("add", xenstored.vbd(6, DISK, "e1.0")) == 0
    host.users += ["mounted on /srv"]
    path = xenstored.vbd(6, DISK, "e1.0")
    assert script("add", path) == 1
    assert xenstored.says(path)["hotplug-error"] == "e1.0 is in use on this host, mounted on /srv: end that first"


def test_attached_already_by_another_fence(script: Script, xenstored: Xenstored, host: Host) -> None:
    """A guest must not believe itself guarded that is not."""
    xenstored.domain(5, "d1", UUID)
    state.Folder(E1_0).hold({"aoetab": 1})
    state.Folder(E1_0).save(state.State(0, 1, False))
    path = xenstored.vbd(5, DISK, "e1.0")
    assert script("add", path) == 1
    assert (
        "e1.0 is attached already, by fence=off and not for this domain (held by aoetab)"
        in xenstored.says(path)["hotplug-error"]
    )
    assert script("add", xenstored.vbd(5, DISK, "e1.0;fence=off")) == 0
    assert held() == ["aoetab", "xen:5:51712"]


# -- mending -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes_too", [True, False])
def test_a_domain_that_has_died_holds_nothing(
    script: Script, xenstored: Xenstored, host: Host, nodes_too: bool
) -> None:
    xenstored.domain(5, "d1", UUID)
    xenstored.domain(6, "d2", OTHER)
    assert script("add", xenstored.vbd(5, DISK, "e1.0")) == 0
    xenstored.ends(5, nodes_too)
    assert script("add", xenstored.vbd(6, DISK, "e1.0")) == 0
    assert held() == ["xen:6:51712"] and dict(host.options[E1_0])["owner-tag"] == OTHER
    assert "detach e1.0 for xen:5:51712" in host.did
    assert not xenstored.says("backend/vbd/5/51712")


def test_a_number_that_another_disk_has_now_holds_nothing(script: Script, xenstored: Xenstored, host: Host) -> None:
    xenstored.domain(5, "d1", UUID)
    assert script("add", xenstored.vbd(5, DISK, "e1.0")) == 0
    xenstored.vbd(5, DISK, "e7.7")
    xenstored.domain(6, "d2", OTHER)
    assert script("add", xenstored.vbd(6, DISK, "e1.0")) == 0
    assert held() == ["xen:6:51712"]


def test_a_dead_domains_disk_that_nobody_serves_is_gone_on_with(
    script: Script, xenstored: Xenstored, host: Host
) -> None:
    xenstored.domain(5, "d1", UUID)
    assert script("add", xenstored.vbd(5, DISK, "e1.0")) == 0
    xenstored.ends(5)
    host.running = False
    xenstored.domain(6, "d1", UUID)
    assert script("add", xenstored.vbd(6, DISK, "e1.0")) == 0
    assert held() == ["xen:6:51712"]


def test_a_release_waits_for_the_kernels_backend(
    script: Script, xenstored: Xenstored, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xenstored.domain(5, "d1", UUID)
    path = xenstored.vbd(5, DISK, "e1.0")
    assert script("add", path) == 0
    backend = tmp_path / "sys/bus/xen-backend/devices/vbd-5-51712"
    backend.mkdir(parents=True)
    looks = []

    def sleep(seconds: float) -> None:
        assert host.did == ["attach e1.0 for xen:5:51712"]
        looks.append(seconds)
        backend.rmdir()

    monkeypatch.setattr(xen.time, "sleep", sleep)
    assert script("remove", path) == 0
    assert len(looks) == 1 and held() == []


# -- what is known of guests -------------------------------------------------------------------------------------------


def test_guests(xenstored: Xenstored, host: Host, tmp_path: Path) -> None:
    xenstored.domain(5, "d1", UUID)
    xenstored.vbd(5, DISK, "e1.0")
    folder = tmp_path / "sys/bus/xen-backend/devices/vbd-5-51712/statistics"
    folder.mkdir(parents=True)
    for name, value in {"rd_req": 3, "rd_sect": 24, "wr_req": 2, "wr_sect": 16, "f_req": 1, "ds_req": 4}.items():
        (folder / name).write_text(f"{value}\n")
    one, two = xen.guests(["operator", "xen:5:51712", "xen:9:51712"])
    assert one == {
        "holder": "xen:5:51712",
        "domid": 5,
        "exists": True,
        "domain": "d1",
        "uuid": UUID,
        "vdev": "xvda",
        "access": "w",
        "requests": {
            "read": {"operations": 3, "bytes": 12288},
            "write": {"operations": 2, "bytes": 8192},
            "flush": {"operations": 1},
            "trim": {"operations": 4},
        },
    }
    assert (two["domid"], two["exists"], two["domain"], two["requests"]) == (9, False, None, None)


def test_guests_without_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENSTORED_PATH", str(tmp_path / "none"))
    assert xen.guests(["operator"]) == []
    (one,) = xen.guests(["xen:5:51712"])
    assert (one["holder"], one["exists"], one["domain"]) == ("xen:5:51712", None, None)


def test_guests_that_may_not_be_asked_for(xenstored: Xenstored) -> None:
    xenstored.refuse = "EACCES"
    (one,) = xen.guests(["xen:5:51712"])
    assert (one["holder"], one["exists"], one["domain"]) == ("xen:5:51712", None, None)


# -- the script itself -------------------------------------------------------------------------------------------------


def test_the_script_as_libxl_starts_it(xenstored: Xenstored, tmp_path: Path) -> None:
    """In an environment of nothing but its own variables, without stdin and from another folder."""
    place = tmp_path / "block-aoe"
    text = (ROOT / "plugin/xen/block-aoe").read_text()
    place.write_text(text.replace('PACKAGE_FOLDER = ""', f'PACKAGE_FOLDER = "{ROOT}"'))
    place.chmod(0o755)
    xenstored.domain(5, "d1", UUID)
    path = xenstored.vbd(5, DISK, "e1.0;colour=blue")
    env = {
        "script": "/etc/xen/scripts/block-aoe",
        "XENBUS_TYPE": "vbd",
        "XENBUS_PATH": path,
        "XENBUS_BASE_PATH": "backend",
        "XENSTORED_PATH": xenstored.path,
        "AOE_NBD_RUN": str(tmp_path / "run"),
        "AOE_NBD_ETC": str(tmp_path),
    }

    def run(action: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [place, action], env=env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    done = run("add")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and not done.stdout
    assert "field 'colour=blue': there is no such option" in xenstored.says(path)["hotplug-error"]
    done = run("remove")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()
