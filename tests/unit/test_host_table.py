# SPDX-License-Identifier: BSD-3-Clause
"""aoetab: what a line may say, how each wrong one is told, and that a wrong line harms no other LUN."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_nbd.host import table
from aoe_nbd.host.table import Entry, TableError
from aoe_nbd.options import PARAMETERS, Options
from aoe_nbd.wire.address import Address
from examples import examples

ROOT = Path(__file__).resolve().parents[2]
NOT_HERE = ("target", "shelf", "slot", "control", "lock-memory", "on-end")
E10, E11 = Address(1, 0), Address(1, 1)


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AOE_NBD_ETC", str(tmp_path))
    return tmp_path


def refused(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(TableError) as caught:
        table.read(path)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.startswith(f"{path}, line ")
    return sentence.removeprefix(f"{path}, ")


def test_a_table(etc: Path) -> None:
    path = etc / "aoetab"
    path.write_text(
        "# all of it\n\n"
        "e1.0  interface=eth1,eth2 On_Dead=fail-after=30 readonly   # the first\n"
        "\t1.1\tmac=02:00:00:00:00:01\tmac=02:00:00:00:00:02 sectors=2 noauto\r\n"
        "e7.3\n"
    )
    assert list(table.read()) == [E10, E11, Address(7, 3)]
    first, second, third = table.read().values()
    assert first == Entry(
        E10, [("interface", "eth1,eth2"), ("on-dead", "fail-after=30"), ("readonly", "true")], True, f"{path}, line 3"
    )
    assert second.options == [("mac", "02:00:00:00:00:01"), ("mac", "02:00:00:00:00:02"), ("sectors", "2")]
    assert (second.auto, third.auto, third.options) == (False, True, [])


def test_a_table_in_several_files(etc: Path) -> None:
    assert table.read() == {}, "no table is an empty one"
    (etc / "aoetab.d").mkdir()
    for name, line in (("20.conf", "e2.0"), ("10.conf", "e1.0"), (".hidden.conf", "e8.0"), ("30.conf~", "e9.0")):
        (etc / "aoetab.d" / name).write_text(line)  # and no newline at the end
    (etc / "aoetab").write_text("e3.0\n")
    assert [str(address) for address in table.read()] == ["e3.0", "e1.0", "e2.0"]
    (etc / "aoetab.d" / "30.conf").write_text("\ne1.0 readonly\n")
    with pytest.raises(TableError, match=r"30\.conf, line 2, field 'e1\.0': .*10\.conf, line 1"):
        table.read()


def test_every_parameter_can_be_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "aoetab"
    names = [p.name for p in PARAMETERS if p.name not in NOT_HERE]
    values = {"mac": "02:00:00:00:00:01", "interface": "eth0", "netif": "eth1", "cpu": "0"}
    words = [f"{p.name}={values.get(p.name) or p.default or 'x'}" for p in PARAMETERS if p.name in names]
    path.write_text(f"e1.0 {' '.join(words)}")
    entry = table.read(path)[E10]
    assert [name for name, _ in entry.options] == names
    options = Options()
    for pair in entry.options:
        options.set(*pair)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\ne1\n", "line 2, field 'e1': 'e1' is not an AoE address: give e<shelf>.<slot>, such as e1.0"),
        ("e1.255", "line 1, field 'e1.255': slot=255 is out of range: give 0 to 254"),
        ("e1.0 interface=", "line 1, field 'interface=': interface= names no interface: `ip link` lists them"),
        ("e1.0 interface", "line 1, field 'interface': the option needs a value: give interface=VALUE"),
        ("e1.0 readonly=maybe", "line 1, field 'readonly=maybe': readonly=maybe is neither true nor false"),
        ("e1.0 readonly on-dead=panic", "line 1, field 'on-dead=panic': on-dead=panic is unknown"),
        ("e1.0 readonli", "line 1, field 'readonli': there is no such option: there are mac, interface,"),
        ("e1.0 target=e1.1", "line 1, field 'target=e1.1': the line's first word is the address"),
        ("e1.0 control=/x", "line 1, field 'control=/x': there is no such option"),
        ("e1.0 sectors=2 sectors=4", "line 1, field 'sectors=4': sectors is given twice"),
        ("e1.0\n#\ne1.0", "line 3, field 'e1.0': e1.0 is in the table already ("),
        ("e1.0#1", "line 1, field 'e1.0#1': 'e1.0#1' is not an AoE address"),
        ("e1.0 mac=ff:ff:ff:ff:ff:ff", "line 1, field 'mac=ff:ff:ff:ff:ff:ff': mac=ff:ff:ff:ff:ff:ff is no unicast"),
    ],
)
def test_refusals_name_file_line_and_field(tmp_path: Path, text: str, sentence: str) -> None:
    assert refused(tmp_path / "aoetab", text).startswith(sentence)


def test_a_wrong_line_harms_no_other_lun(tmp_path: Path) -> None:
    path = tmp_path / "aoetab"
    path.write_text("e1.0 readonly\ne1.1 sectors=0\n")
    assert table.find(E10, path) == table.scan([path]).entries[E10]
    with pytest.raises(TableError, match="line 2, field 'sectors=0'"):
        table.find(E11, path)
    assert table.find(Address(1, 2), path) is None
    path.write_text("e1.0 readonly\nel.1 sectors=2\n")
    assert table.find(E10, path)
    with pytest.raises(TableError, match=r"line 2, field 'el\.1'"):
        table.find(E11, path)
    path.write_text("e1.0 readonly\ne1.0 sectors=2\n")
    with pytest.raises(TableError, match=r"line 2, field 'e1\.0'"):
        table.find(E10, path)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        table.read(tmp_path / "absent")


@examples(500)
@given(st.text(st.sampled_from("e1.0 \t\n#=noauto,readonlymacsect\x85\x00é"), max_size=60))
def test_any_text_gives_a_table_or_sentences(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_text(text)
    found = table.scan([path])
    assert all("\n" not in str(error) for error in found.errors)
    assert all(address == entry.address for address, entry in found.entries.items())


def test_the_sample_is_empty_and_its_examples_are_right(tmp_path: Path) -> None:
    sample = (ROOT / "plugin" / "aoetab").read_text()
    path = tmp_path / "aoetab"
    path.write_text(sample)
    assert table.read(path) == {}
    path.write_text("\n".join(line.removeprefix("# ") for line in sample.splitlines() if line.startswith("# e")))
    assert [(entry.address, entry.auto) for entry in table.read(path).values()] == [
        (E10, True),
        (E11, True),
        (Address(2, 0), False),
    ]
