"""What of the demo needs no cluster: its folder, its refusals, its words, and how it fails to
start."""

from __future__ import annotations

import dataclasses
import datetime
import json
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from support.demo import free_base_port
from support.peer_certificates import now

from quorepo.cluster.peer.certificates import make_authority
from quorepo.rpc.config import load_config, load_peer_credentials, load_tokens
from quorepo.rpc.demo import run as demo_run
from quorepo.rpc.demo.certificates import provide_certificates
from quorepo.rpc.demo.guide import guide
from quorepo.rpc.demo.layout import DemoLayout, DemoNode, prepare
from quorepo.rpc.demo.run import check_startable, run_demo
from quorepo.storage.errors import ConfigError, Unavailable


def test_every_written_configuration_can_be_served(tmp_path: Path) -> None:
    layout = prepare(tmp_path / "d", 3, 9000)
    for node, ports in zip(layout.nodes, (9000, 9010, 9020), strict=True):
        config = load_config(node.config)
        assert config.node.name == node.name
        assert config.listen.http == f"127.0.0.1:{ports}"
        assert config.listen.grpc == f"127.0.0.1:{ports + 1}"
        assert config.listen.metrics == f"127.0.0.1:{ports + 2}"
        assert config.listen.peer == f"127.0.0.1:{ports + 3}"
        assert config.node.data_dir == tmp_path / "d" / node.name
        assert config.push.create_on_push
        assert config.cluster.rejoin_empty
        assert set(config.cluster.peers) == {"n1", "n2", "n3"}
        assert load_tokens(config.auth.tokens_file) == {"admin": layout.admin_token}
        assert load_peer_credentials(config).node == node.name


def test_two_more_nodes_are_prepared_to_be_added(tmp_path: Path) -> None:
    layout = prepare(tmp_path / "d", 3, 9000)
    assert [node.name for node in layout.spares] == ["n4", "n5"]
    for node in layout.spares:
        config = load_config(node.config)
        assert load_peer_credentials(config).node == node.name
        assert set(config.cluster.peers) == {"n1", "n2", "n3", node.name}
    assert [node.name for node in prepare(tmp_path / "e", 8, 9000).spares] == ["n9"]
    assert prepare(tmp_path / "f", 3, 65510).spares == ()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(before: dict[str, bytes], folder: Path) -> set[str]:
    return {name for name, content in contents(folder).items() if content != before.get(name)}


def test_only_certificates_that_end_soon_are_made_again(tmp_path: Path) -> None:
    provide_certificates(tmp_path, ["n1", "n2"], now() - datetime.timedelta(days=368))
    before = contents(tmp_path)
    provide_certificates(tmp_path, ["n1"], now())
    assert changed(before, tmp_path) == {"n1.pem", "n1.key"}
    (tmp_path / "n2.pem").unlink()
    (tmp_path / "n2.key").write_bytes(b"garbage")
    before = contents(tmp_path)
    provide_certificates(tmp_path, ["n1", "n2"], now())
    assert changed(before, tmp_path) == {"n2.pem", "n2.key"}


def spoil_key(folder: Path) -> None:
    (folder / "ca.key").write_bytes(make_authority(now()).key_pem)
    (folder / "n1.pem").unlink()


def garble_key(folder: Path) -> None:
    (folder / "ca.key").write_bytes(b"garbage")
    (folder / "n1.pem").unlink()


def lose_authority(folder: Path) -> None:
    (folder / "ca.pem").unlink()


def age(folder: Path) -> None:
    old = now() - datetime.timedelta(days=3630)
    for path in [*folder.glob("*.pem"), *folder.glob("*.key")]:
        path.unlink()
    provide_certificates(folder, ["n1", "n2"], old)


@pytest.mark.parametrize("harm", [spoil_key, garble_key, lose_authority, age])
def test_demo_with_a_useless_authority_gets_another_one(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    root = tmp_path / "d"
    prepare(root, 2, 9000)
    harm(root / "secrets")
    before = contents(root / "secrets")
    layout = prepare(root)
    nodes = [node.name for node in (*layout.nodes, *layout.spares)]
    made = {f"{name}.{kind}" for name in ("ca", *nodes) for kind in ("pem", "key")}
    assert changed(before, root / "secrets") == made
    for node in layout.nodes:
        assert load_peer_credentials(load_config(node.config))


def test_secrets_are_made_once_and_private(tmp_path: Path) -> None:
    first = prepare(tmp_path / "d", 3, 9000)
    before = contents(tmp_path / "d" / "secrets")
    again = prepare(tmp_path / "d", create_on_push=False)
    assert contents(tmp_path / "d" / "secrets") == before
    assert again.admin_token == first.admin_token
    assert again.nodes == first.nodes
    assert not load_config(again.nodes[0].config).push.create_on_push
    for path in (tmp_path / "d" / "secrets").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_paths_with_quotes_and_spaces_survive(tmp_path: Path) -> None:
    layout = prepare(tmp_path / 'a "quoted" \\ päth', 1, 9000)
    text = layout.nodes[0].config.read_text()
    assert tomllib.loads(text)["node"]["data_dir"] == str(layout.nodes[0].data_dir)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nodes": 5}, "holds a demo with --nodes 3, not 5; nothing was changed"),
        ({"base_port": 9100}, "holds a demo with --base-port 9000, not 9100"),
        ({"ephemeral": True}, "--ephemeral would remove it"),
    ],
)
def test_a_folder_keeps_its_shape(tmp_path: Path, change: dict[str, int], words: str) -> None:
    prepare(tmp_path / "d", 3, 9000)
    with pytest.raises(ConfigError, match=words):
        prepare(tmp_path / "d", **change)  # type: ignore[arg-type]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="holds no demo"):
        prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "layout.json").write_text("garbage")
    with pytest.raises(ConfigError, match="cannot read"):
        prepare(tmp_path)


@pytest.mark.parametrize(("nodes", "base_port"), [(0, 9000), (10, 9000), (3, 65_530), (1, 80)])
def test_impossible_shapes_are_refused(tmp_path: Path, nodes: int, base_port: int) -> None:
    with pytest.raises(ConfigError):
        prepare(tmp_path / "d", nodes, base_port)


def test_demo_json_is_private_and_says_how_to_start_each_node_again(tmp_path: Path) -> None:
    layout = prepare(tmp_path / "d", 2, 9000)
    layout.write_json([11, 12])
    assert stat.S_IMODE(layout.json_path.stat().st_mode) == 0o600
    content = json.loads(layout.json_path.read_text())
    assert set(content) == {"nodes", "admin_token"}
    assert content["nodes"][1] == {
        "name": "n2",
        "pid": 12,
        "argv": [sys.executable, "-m", "quorepo", "serve", "--config", str(layout.nodes[1].config)],
        "http": "http://127.0.0.1:9010",
        "grpc": "127.0.0.1:9011",
        "metrics": "http://127.0.0.1:9012/metrics",
        "data_dir": str(tmp_path / "d" / "n2"),
    }


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    layout = prepare(tmp_path / "d", 1, free_base_port(1))
    check_startable(layout.nodes)
    with (
        socket.create_server(("127.0.0.1", layout.nodes[0].first_port + 1)),
        pytest.raises(ConfigError, match=r"grpc of n1.*nothing was started"),
    ):
        check_startable(layout.nodes)


def test_two_demos_of_one_folder_are_refused(tmp_path: Path) -> None:
    layout = prepare(tmp_path / "d", 1, free_base_port(1))
    with (
        demo_run._lock(layout.root),
        pytest.raises(ConfigError, match="another demo runs"),
    ):
        run_demo(layout, print)


def failing(layout: DemoLayout, code: str) -> DemoLayout:
    """The same demo with one node that runs `code` instead of quorepo."""

    @dataclasses.dataclass(frozen=True)
    class Fake(DemoNode):
        @property
        def argv(self) -> list[str]:
            return [sys.executable, "-c", code]

    node = layout.nodes[0]
    fake = Fake(node.name, node.root, node.first_port)
    return dataclasses.replace(layout, nodes=(fake,))


def test_a_node_that_ends_early_is_shown_with_its_log(tmp_path: Path) -> None:
    layout = prepare(tmp_path / "d", 1, free_base_port(1))
    broken = failing(layout, "import sys; print('the reason why', file=sys.stderr); sys.exit(78)")
    said: list[str] = []
    with pytest.raises(Unavailable) as caught:
        run_demo(broken, said.append)
    assert "node 'n1' ended with exit code 78 before it was ready" in caught.value.message
    assert "the reason why" in caught.value.message
    assert said[-1] == "quorepo demo: all nodes stopped"
    assert not layout.json_path.exists()


def test_a_node_that_never_gets_ready_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_run, "READY_WAIT_S", 0.5)
    layout = prepare(tmp_path / "d", 1, free_base_port(1), ephemeral=True)
    stuck = failing(layout, "import signal; signal.pause()")
    with pytest.raises(Unavailable, match=r"'n1' was not ready after 0\.5 s"):
        run_demo(stuck, lambda _text: None)
    assert not layout.root.exists(), "ephemeral"


def test_the_guide_can_be_copied_and_pasted(tmp_path: Path) -> None:
    layout = prepare(tmp_path / "d", 3, 9000)
    text = guide(layout, [11, 12, 13], "n2", 1.25)
    for port in (9000, 9010, 9020):
        assert f"http://admin:{layout.admin_token}@127.0.0.1:{port}/NAME.git" in text
    assert "git push http://admin:" in text
    assert "kill -9 12" in text
    assert "@127.0.0.1:9020/hello.git main\n" in text.split("kill -9")[1]
    assert "status" in text
    assert "node add n5 --peer-address 127.0.0.1:9043 --wait 60 --yes" in text
    assert "Ctrl-C stops every node; the data stays." in text
    assert "kill -9" not in guide(layout, [11, 12, 13], "", 1.0)


def test_demo_explains_a_refusal_on_the_command_line(tmp_path: Path) -> None:
    prepare(tmp_path / "d", 3, 9000)
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "quorepo",
            "demo",
            "--nodes",
            "5",
            "--data-dir",
            str(tmp_path / "d"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "nothing was changed" in result.stderr
    assert "next: leave out --nodes" in result.stderr
