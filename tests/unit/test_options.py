# SPDX-License-Identifier: BSD-3-Clause
"""The bridge's parameters: what each takes, what each refuses and with which sentence, and what only the whole can show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_nbd.core.policy import FAIL, HOLD, OnDead
from aoe_nbd.options import PARAMETERS, OptionError, Options, parse_on_dead
from aoe_nbd.wire.address import Address
from examples import examples

MAC1, MAC2 = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


def options(*words: str) -> Options:
    """As nbdkit hands `key=value` words over, and says that they are all."""
    found = Options()
    for word in words:
        key, _, value = word.partition("=")
        found.set(key, value)
    found.complete()
    return found


def refused(*words: str) -> str:
    with pytest.raises(OptionError) as caught:
        options(*words)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert not sentence.endswith(".")
    return sentence


def test_defaults_are_those_of_the_table() -> None:
    found = options()
    table = {p.name: p.default for p in PARAMETERS}
    assert found == Options()
    assert found.address is None
    assert (found.macs, found.interfaces) == ([], [])
    assert str(found.sectors) == table["sectors"]
    assert str(found.on_dead) == table["on-dead"]
    assert f"{found.connect_timeout:g}" == table["connect-timeout"]
    assert str(found.readonly).lower() == table["readonly"]
    assert str(found.pin_threads).lower() == table["pin-threads"]
    assert str(found.busy_poll) == table["busy-poll"]
    assert str(found.debug).lower() == table["debug"]
    assert found.cpu == table["cpu"]
    assert (found.fence, found.owner, found.owner_tag) == (table["fence"], table["owner"], table["owner-tag"])


def test_every_parameter_of_the_table_is_taken() -> None:
    good = {
        "target": "e1.0",
        "shelf": "1",
        "slot": "0",
        "mac": "02:00:00:00:00:01",
        "interface": "eth0",
        "netif": "eth1",
        "sectors": "8",
        "readonly": "yes",
        "on-dead": "fail",
        "connect-timeout": "2.5",
        "cpu": "0",
        "fence": "enforce",
        "owner": "dom0-a",
        "owner-tag": "7d3b2f6e-0000-4000-8000-1234567890ab",
        "pin-threads": "no",
        "busy-poll": "0",
        "debug": "1",
    }
    assert set(good) <= {p.name for p in PARAMETERS}
    found = options(*(f"{key}={value}" for key, value in good.items()))
    assert found.address == Address(1, 0)
    assert (found.sectors, found.readonly, found.on_dead, found.connect_timeout) == (8, True, FAIL, 2.5)
    assert (found.cpu, found.pin_threads, found.debug, found.interfaces) == (0, False, True, ["eth0", "eth1"])
    assert (found.fence, found.owner, found.owner_tag) == ("enforce", "dom0-a", good["owner-tag"])
    assert found.busy_poll == 0


def test_cpus_may_be_a_word() -> None:
    assert [options(f"cpu={word}").cpu for word in ("auto", "one", "all", "7")] == ["auto", "one", "all", 7]


@pytest.mark.parametrize(
    "words",
    [
        ["target=e7.3"],
        ["target=7.3"],
        ["shelf=7", "slot=3"],
        ["slot=3", "shelf=7"],
        ["target=e7.3", "shelf=7", "slot=3"],
    ],
)
def test_the_address_in_each_form(words: list[str]) -> None:
    assert options(*words).address == Address(7, 3)


def test_macs_repeat_or_come_in_a_list() -> None:
    both = ["mac=02:00:00:00:00:01", "mac=02-00-00-00-00-02,02:00:00:00:00:01", "target=e1.0"]
    assert options(*both).macs == [MAC1, MAC2]


def test_interfaces_repeat_or_come_in_a_list() -> None:
    assert options("interface=eth0, eth1", "netif=eth0", "interface=br0").interfaces == ["eth0", "eth1", "br0"]


@pytest.mark.parametrize("key", ["connect-timeout", "connect_timeout", "CONNECT_TIMEOUT", "Connect-Timeout"])
def test_hyphen_underscore_and_case_in_keys(key: str) -> None:
    assert options(f"{key}=7").connect_timeout == 7


@pytest.mark.parametrize("text", ["1", "true", "YES", "on", "T", "y"])
def test_true(text: str) -> None:
    assert options(f"readonly={text}").readonly is True


@pytest.mark.parametrize("text", ["0", "false", "No", "off", "F", "n"])
def test_false(text: str) -> None:
    assert options("readonly=1", f"readonly={text}").readonly is False


@pytest.mark.parametrize(
    ("words", "on_dead", "text"),
    [
        (["on-dead=hold"], HOLD, "hold"),
        (["on-dead=fail"], FAIL, "fail"),
        (["on-dead=fail-after=30"], OnDead(30.0), "fail-after=30"),
        (["on-dead=fail-after:0.5"], OnDead(0.5), "fail-after=0.5"),
        (["fail-after=90"], OnDead(90.0), "fail-after=90"),
        (["on_dead=fail-after=1000000"], OnDead(1e6), "fail-after=1e+06"),
    ],
)
def test_on_dead(words: list[str], on_dead: OnDead, text: str) -> None:
    assert options(*words).on_dead == on_dead
    assert str(on_dead) == text


def test_on_dead_reads_what_it_prints() -> None:
    for policy in (HOLD, FAIL, OnDead(30.0), OnDead(0.1), OnDead(12.5)):
        assert parse_on_dead(str(policy)) == policy


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["shelf=65535", "slot=0"], "shelf=65535 is out of range: give 0 to 65534"),
        (["shelf=1", "slot=255"], "slot=255 is out of range: give 0 to 254"),
        (["shelf=one", "slot=0"], "shelf=one is not a number: give 0 to 65534"),
        (["shelf=-1", "slot=0"], "shelf=-1 is not a number: give 0 to 65534"),
        (["target=e1"], "'e1' is not an AoE address: give e<shelf>.<slot>, such as e1.0"),
        (["shelf=1"], "shelf is given without slot: give both, or target=e<shelf>.<slot>"),
        (["slot=1"], "slot is given without shelf: give both, or target=e<shelf>.<slot>"),
        (
            ["target=e1.0", "shelf=1", "slot=1"],
            "target=e1.0 and shelf=1 slot=1 disagree: give one of them",
        ),
        (
            ["mac=02:00:00:00:00:01"],
            "mac is given without an address: give shelf and slot, or target=e<shelf>.<slot>",
        ),
        (
            ["mac=02:00:00:00:00"],
            "mac=02:00:00:00:00 is not a MAC address: give six hex bytes, such as 02:00:00:00:00:01",
        ),
        (["mac="], "mac= is not a MAC address: give six hex bytes, such as 02:00:00:00:00:01"),
        (
            ["mac=ff:ff:ff:ff:ff:ff"],
            "mac=ff:ff:ff:ff:ff:ff is no unicast address: give the MAC of the target's network card",
        ),
        (["interface="], "interface= names no interface: `ip link` lists them"),
        (["netif=eth0,,eth1"], "netif=eth0,,eth1 names no interface: `ip link` lists them"),
        (["sectors=0"], "sectors=0 is not a number from 1 to 255"),
        (["sectors=256"], "sectors=256 is not a number from 1 to 255"),
        (["sectors=many"], "sectors=many is not a number from 1 to 255"),
        (["readonly=maybe"], "readonly=maybe is neither true nor false: give true or false"),
        (["debug="], "debug= is neither true nor false: give true or false"),
        (["fence=high"], "fence=high is unknown: give off, warn, enforce, auto"),
        (["owner=my host"], "owner=my host is not usable: give 1 to 64 letters, digits and . : @ + - _ only"),
        (["owner-tag="], "owner-tag= is not usable: give 1 to 64 letters, digits and . : @ + - _ only"),
        (["on-end=panic"], "on-end=panic is unknown: give fail or hang-up"),
        (["on-dead=panic"], "on-dead=panic is unknown: give hold, fail, or fail-after=SECONDS"),
        (["on-dead=fail-after=soon"], "fail-after=soon is not a number from 0.1 to 1e+06"),
        (["fail-after=0"], "fail-after=0 is not a number from 0.1 to 1e+06"),
        (["connect-timeout=0"], "connect-timeout=0 is not a number from 0.1 to 86400"),
        (["connect-timeout=inf"], "connect-timeout=inf is not a number from 0.1 to 86400"),
        (["connect-timeout=nan"], "connect-timeout=nan is not a number from 0.1 to 86400"),
        (["busy-poll=20000"], "busy-poll=20000 is not a number from 0 to 10000"),
        (["cpu=-1"], "cpu=-1 is not a number from 0 to 4095, auto, one or all"),
    ],
)
def test_refusals(words: list[str], sentence: str) -> None:
    assert refused(*words) == sentence


@pytest.mark.parametrize("word", ["sectors=2.5", "cpu=0.5", "sectors=1e2"])
def test_counts_are_whole_numbers(word: str) -> None:
    """Half a sector was never meant: better said than rounded."""
    assert refused(word).startswith(word)


def test_an_unknown_parameter_is_told_with_those_that_are_known() -> None:
    sentence = refused("shelff=1")
    assert sentence.startswith("unknown parameter shelff=1: the parameters are target, shelf, slot, mac")
    assert all(p.name in sentence for p in PARAMETERS)


WORDS = st.sampled_from([p.name for p in PARAMETERS] + ["fail-after", "", "x", "__class__", "_shelf", "complete"])
VALUES = (
    st.text(max_size=20)
    | st.text(st.sampled_from("0123456789.,:-eaf=+ inht"), max_size=24)
    | st.sampled_from(["e1.0", "1", "true", "hold", "02:00:00:00:00:01", "eth0", "9" * 5000, "1" + "0" * 400])
)


@examples(2_000)
@given(st.lists(st.tuples(WORDS | st.text(max_size=8), VALUES), max_size=5))
def test_any_words_give_options_or_one_sentence(words: list[tuple[str, str]]) -> None:
    """Never another exception: it would reach the user as a traceback."""
    found = Options()
    try:
        for key, value in words:
            found.set(key, value)
        found.complete()
    except OptionError:
        return
    assert 1 <= found.sectors <= 255
    assert 0.1 <= found.connect_timeout <= 86400
    assert found.address is None or (found.address.shelf <= 65534 and found.address.slot <= 254)
    assert all(len(mac) == 6 for mac in found.macs)
    assert all(name and name == name.strip() for name in found.interfaces)
    assert not found.macs or found.address is not None
