"""The private folder of a node, and what a killed one leaves behind."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from quorepo.rpc.node.runtime_dir import runtime_directory, sweep_stale


def test_the_folder_is_private_short_and_gone_afterwards() -> None:
    with runtime_directory() as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert len(os.fsencode(path / "core.sock")) <= 107
        (path / "core.sock").touch()
    assert not path.exists()


def test_the_folder_of_a_killed_process_is_swept_and_a_live_one_is_kept(tmp_path: Path) -> None:
    code = """
import pathlib, signal, sys
from quorepo.rpc.node.runtime_dir import runtime_directory
with runtime_directory(pathlib.Path(sys.argv[1])) as path:
    print(path, flush=True)
    signal.pause()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    with runtime_directory(tmp_path) as live:
        assert sweep_stale(tmp_path) == []
        process.kill()
        process.communicate()
        assert left.exists()
        assert sweep_stale(tmp_path) == [left]
        assert not left.exists()
        assert live.exists()


def test_what_is_not_ours_is_never_swept(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "owner").touch()
    (tmp_path / "quorepo-run-link").symlink_to(elsewhere)
    open_to_all = tmp_path / "quorepo-run-open"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    (open_to_all / "owner").touch()
    just_made = tmp_path / "quorepo-run-new"
    just_made.mkdir(mode=0o700)
    foreign = tmp_path / "quorepo-run-foreign"
    foreign.mkdir(mode=0o700)
    (foreign / "data").touch()
    os.utime(foreign, (0, 0))
    assert sweep_stale(tmp_path) == []
    assert (elsewhere / "owner").exists()


def test_a_half_made_folder_goes_once_it_is_old(tmp_path: Path) -> None:
    half_made = tmp_path / "quorepo-run-half"
    half_made.mkdir(mode=0o700)
    (half_made / "owner.new").touch()
    os.utime(half_made, (0, 0))
    assert sweep_stale(tmp_path) == [half_made]
