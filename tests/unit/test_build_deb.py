# SPDX-License-Identifier: BSD-3-Clause
"""The Debian package: what is in it, that it is the same whoever builds it, and what dpkg does with it."""

from __future__ import annotations

import ast
import gzip
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aoe_nbd import COMPILED, __version__
from aoe_nbd.cli import install

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"
pytestmark = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb here")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as it is now, which nobody changes between two builds."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("aoe_nbd", "plugin", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(source: Path, output: Path, *words: str, **env: str) -> Path:
    done = subprocess.run(
        [source / "scripts/build-deb", "--output", output, *words],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def deb(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("deb"), "--sources", SOURCE_DATE_EPOCH="1700000000")


@pytest.fixture(scope="module")
def tree(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    subprocess.run(["dpkg-deb", "-R", deb, folder], check=True)
    return folder


@pytest.fixture(scope="module")
def control(tree: Path) -> dict[str, str]:
    lines = (tree / "DEBIAN/control").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines if not line.startswith(" "))


def test_the_same_tree_gives_the_same_package(source: Path, deb: Path, tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        again = build(source, tmp_path, "--sources", SOURCE_DATE_EPOCH="1700000000", TZ="Asia/Tokyo", LC_ALL="C")
    finally:
        os.umask(mask)
    assert deb.name == again.name == f"aoe-nbd_{__version__}_all.deb"
    assert deb.read_bytes() == again.read_bytes()


def test_another_version(source: Path, tmp_path: Path) -> None:
    package = build(source, tmp_path, "--sources", "--version", "9.1+2")
    assert package.name == "aoe-nbd_9.1+2_all.deb"
    assert subprocess.run(["dpkg-deb", "-f", package, "Version"], capture_output=True, text=True).stdout == "9.1+2\n"
    done = subprocess.run([ROOT / "scripts/build-deb", "--version", "one two"], capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr.count("\n") == 1


@pytest.mark.skipif(not COMPILED, reason="the hot path is not compiled here: scripts/compile")
def test_the_compiled_form_is_in_it_and_runs(source: Path, tmp_path: Path) -> None:
    (library,) = ROOT.glob("aoe_nbd_*__mypyc.*.so")
    shutil.copy(library, source)
    package = build(source, tmp_path, SOURCE_DATE_EPOCH="1700000000")
    architecture = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True).stdout.strip()
    assert package.name == f"aoe-nbd_{__version__}_{architecture}.deb"
    subprocess.run(["dpkg-deb", "-x", package, tmp_path / "tree"], check=True)
    code = "import aoe_nbd, aoe_nbd.engine as e; print(aoe_nbd.COMPILED, e.__file__)"
    place = tmp_path / "tree/usr/lib/python3/dist-packages"
    words = [PYTHON, "-c", code]
    done = subprocess.run(words, env={"PYTHONPATH": str(place)}, capture_output=True, text=True, cwd="/")
    assert done.stdout.startswith(f"True {place}/aoe_nbd/engine.cpython-"), done


def test_every_piece_is_in_it(source: Path, tree: Path) -> None:
    for piece in install.PIECES:
        place = tree / piece.packaged.lstrip("/")
        if piece.part == "manual":
            text = gzip.decompress(place.with_name(f"{place.name}.gz").read_bytes()).decode()
            assert text.startswith('.\\"') and "@" not in text.replace("aoe-nbd@", "")
        else:
            assert place.is_file()
    modules = {path.relative_to(source) for path in (source / "aoe_nbd").rglob("*.py")}
    assert {path.relative_to(tree / "usr/lib/python3/dist-packages") for path in tree.rglob("*.py")} == modules
    assert not list(tree.rglob("__pycache__"))
    assert (tree / "etc/aoe-nbd/aoetab.d").is_dir()
    for name in ("changelog.gz", "copyright", "README.md.gz"):
        assert (tree / "usr/share/doc/aoe-nbd" / name).stat().st_size > 100


def test_owners_and_modes(deb: Path) -> None:
    listing = subprocess.run(["dpkg-deb", "-c", deb], capture_output=True, text=True, check=True).stdout.splitlines()
    assert all(line.split()[1] == "root/root" and line.split()[3] == "2023-11-14" for line in listing)
    modes = {line.split(None, 5)[5]: line[:10] for line in listing}
    assert set(modes.values()) == {"drwxr-xr-x", "-rwxr-xr-x", "-rw-r--r--"}
    executable = {name for name, mode in modes.items() if mode == "-rwxr-xr-x"}
    assert executable == {
        "./usr/bin/aoe-nbd",
        "./usr/share/aoe-nbd/nbdkit-aoe-plugin",
        "./etc/xen/scripts/block-aoe",
    }


def test_conffiles_and_scripts(tree: Path) -> None:
    conffiles = (tree / "DEBIAN/conffiles").read_text().split()
    assert sorted(conffiles) == sorted(
        f"/{path.relative_to(tree)}" for path in (tree / "etc").rglob("*") if path.is_file()
    )
    for name in ("postinst", "prerm", "postrm"):
        assert os.access(tree / "DEBIAN" / name, os.X_OK)
        subprocess.run(["sh", "-n", tree / "DEBIAN" / name], check=True)
    for line in (tree / "DEBIAN/md5sums").read_text().splitlines():
        assert (tree / line.split(None, 1)[1]).is_file()


def imported(folder: Path) -> set[str]:
    """The modules that are imported anywhere in the package, and are neither its own nor Python's."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"aoe_nbd"}


def test_it_depends_on_all_that_it_imports_and_starts(control: dict[str, str]) -> None:
    needs = set(re.findall(r"[\w.+-]+(?= \(|,|$)", f"{control['Depends']}, {control['Recommends']}"))
    packages = {
        "nbd": "python3-libnbd",
        "nbdkit": "nbdkit-plugin-python",
        "prometheus_client": "python3-prometheus-client",
    }
    for module in imported(ROOT / "aoe_nbd"):
        assert packages.get(module, f"python3-{module}") in needs, module
    assert needs >= {"python3", "nbdkit", "nbdkit-plugin-python"}


def test_every_dependency_is_one_that_the_scripts_install(control: dict[str, str]) -> None:
    """So that what is tested here is what the package asks for."""
    found = subprocess.run(
        ["bash", "-c", f". {ROOT}/scripts/lib.sh; printf '%s\\n' ${{RUN_PACKAGES[@]}} ${{TEST_PACKAGES[@]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    needs = set(re.findall(r"[\w.+-]+(?= \(|,|$)", control["Depends"]))
    assert needs <= set(found.stdout.split())


def test_it_runs_from_the_unpacked_tree(tree: Path, tmp_path: Path) -> None:
    env = {
        "PYTHONPATH": str(tree / "usr/lib/python3/dist-packages"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": "/usr/bin:/bin",
    }
    for words in (["-m", "aoe_nbd", "--version"], ["-P", "-c", "from aoe_nbd.cli import main; main(['--version'])"]):
        done = subprocess.run([PYTHON, *words], env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == f"aoe-nbd {__version__}\n"
    done = subprocess.run([PYTHON, "-m", "aoe_nbd", "install"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "a package of the system has it all in place" in done.stderr


# -- what dpkg does with it, in a copy of this system that is thrown away ---------------------------------------------

COPY = r"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root" || exit 77
cp -- "$2" "$1/root/old.deb"
cp -- "$3" "$1/root/new.deb"
mount -t proc proc "$1/root/proc"
mount --bind /dev "$1/root/dev"
mount -t tmpfs tmpfs "$1/root/sys"
mount -t tmpfs tmpfs "$1/root/run"
exec chroot "$1/root" env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -ec "$4" 2>&1
"""


@pytest.fixture
def copy(source: Path, deb: Path, tmp_path: Path) -> Callable[[str], str]:
    """copy(script): its output, in an overlay of this system with /old.deb and /new.deb in it; the test fails if it does."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and mount namespaces")
    if subprocess.run(["dpkg-query", "-W", "aoe-nbd"], capture_output=True).returncode == 0:
        pytest.skip("the package is installed on this system")
    new = build(source, tmp_path, "--sources", "--version", "99")

    def run(script: str) -> str:
        (tmp_path / "copy").mkdir(exist_ok=True)
        words = ["unshare", "--mount", "bash", "-c", COPY, "copy", tmp_path / "copy", deb, new, script]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 77:
            pytest.skip("no overlay can be mounted here")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_dpkg_installs_and_removes_it(copy: Callable[[str], str]) -> None:
    """Installed, upgraded and purged by dpkg, with what it leaves at each stage; with no systemd and no udev running."""
    said = copy(
        """
        cd /
        echo 'path-exclude=/usr/share/man/*' > /etc/dpkg/dpkg.cfg.d/fast  # man-db takes its time
        touch /before
        dpkg -i /old.deb >/dev/null
        echo "version: $(aoe-nbd --version)"
        echo "plugin: $(nbdkit aoe --dump-plugin | grep -c ^aoe_)"
        echo "enabled: $(readlink /etc/systemd/system/multi-user.target.wants/aoe-nbd.service)"
        echo "compiled: $(ls /usr/lib/python3/dist-packages/aoe_nbd/__pycache__ | grep -c __init__)"
        echo 'e7.3 readonly' >> /etc/aoe-nbd/aoetab

        # an upgrade, with a disk attached
        printf '#!/bin/sh\\necho called: "$@"\\n' > /usr/local/bin/aoe-nbd
        chmod 755 /usr/local/bin/aoe-nbd
        mkdir -p /run/aoe-nbd/e7.3 /sys/block/nbd0
        touch /run/aoe-nbd/e7.3/state.json
        echo e7.3 > /sys/block/nbd0/backend
        dpkg --force-confold -i /new.deb
        tail -1 /etc/aoe-nbd/aoetab
        rm /usr/local/bin/aoe-nbd

        # a removal under it, and after it
        dpkg -r aoe-nbd && exit 1
        echo "still: $(aoe-nbd --version)"
        rm -r /sys/block/nbd0 /run/aoe-nbd
        dpkg -r aoe-nbd >/dev/null
        echo "table: $(tail -1 /etc/aoe-nbd/aoetab)"
        dpkg -P aoe-nbd >/dev/null
        find /etc /usr -newer /before ! -type d -name '*aoe[-_]*' | sed 's/^/left: /'
        ls -d /etc/aoe-nbd /usr/share/aoe-nbd /usr/lib/python3/dist-packages/aoe_nbd 2>/dev/null | sed 's/^/left: /'
        """
    )
    assert f"version: aoe-nbd {__version__}\n" in said
    assert "enabled: /lib/systemd/system/aoe-nbd.service\n" in said
    assert re.search(r"^plugin: [1-9]", said, re.MULTILINE) and "compiled: 1\n" in said
    assert "called: restart --all\n" in said and "\ne7.3 readonly\n" in said
    assert "aoe-nbd: not removed, since disks are attached by it: e7.3 (`aoe-nbd detach` them first)\n" in said
    assert f"still: aoe-nbd {__version__}\n" in said
    assert "table: e7.3 readonly\n" in said
    assert "left: " not in said, said
