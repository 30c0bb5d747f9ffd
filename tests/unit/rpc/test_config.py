"""The configuration file: what is accepted, and what each mistake is answered with."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from support.peer_certificates import authority, now

from quorepo.cluster.peer.certificates import issue_certificate
from quorepo.rpc.auth import Authenticator
from quorepo.rpc.config import (
    NodeConfig,
    load_config,
    load_peer_credentials,
    load_tokens,
    split_address,
)
from quorepo.rpc.config_reference import reference
from quorepo.storage.errors import ConfigError, PermissionDenied

PEERS = 'peers = { n1 = "127.0.0.1:7423", n2 = "127.0.0.1:7433" }'
GOOD = """
[node]
name = "n1"
data_dir = "data/n1"

[cluster]
peers = { n1 = "127.0.0.1:7423", n2 = "127.0.0.1:7433" }

[cluster.tls]
ca_file = "secrets/ca.pem"
certificate_file = "secrets/n1.pem"
key_file = "secrets/n1.key"

[listen]
http = "127.0.0.1:7420"
grpc = "127.0.0.1:7421"
metrics = "127.0.0.1:7422"
peer = "127.0.0.1:7423"

[auth]
tokens_file = "secrets/tokens"
"""


def load(folder: Path, text: str) -> NodeConfig:
    path = folder / "n1.toml"
    path.write_text(text)
    return load_config(path)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return str(caught.value)


def test_paths_are_relative_to_the_file_and_addresses_follow_from_listen(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert config.node.data_dir == tmp_path / "data/n1"
    assert config.auth.tokens_file == tmp_path / "secrets/tokens"
    assert config.advertise.http_url == "http://127.0.0.1:7420"
    assert config.advertise.grpc_address == "127.0.0.1:7421"
    assert config.advertise.metrics_url == "http://127.0.0.1:7422/metrics"
    assert config.advertise.peer_address == "127.0.0.1:7423"
    assert not config.push.create_on_push
    assert config.workers.count >= 1


def test_every_section_can_be_set(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        GOOD
        + "[push]\ncreate_on_push = true\n[limits]\npush_bytes_max = 1048576\n"
        + "[raft]\nelection_timeout_s_min = 0.6\n[workers]\ncount = 3\nqueue_max = 5\n",
    )
    assert config.push.create_on_push
    assert config.limits.push_bytes_max == 1048576
    assert config.raft.election_timeout_s_min == 0.6
    assert (config.workers.count, config.workers.queue_max) == (3, 5)


def test_a_configuration_does_not_change(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    with pytest.raises(ValueError, match="frozen"):
        config.node.name = "n2"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name =", "nmae =", "unknown key 'node.nmae'; did you mean 'name'?"),
        ("[listen]", "[listn]", "unknown section 'listn'; did you mean 'listen'?"),
        ("[auth]", "[auth]\nzzz = 1", "nothing was started:\n  unknown key 'auth.zzz'"),
        ('data_dir = "data/n1"\n', "", "missing key 'node.data_dir'"),
        ('"n1"', '"N1"', "node.name: node name 'N1' must be"),
        ('"n1"', '"n9"', "node.name 'n9' is not in cluster.peers (n1, n2)"),
        ('http = "127.0.0.1:7420"', 'http = "0.0.0.0:7420"', "is not a loopback address"),
        (
            'http = "127.0.0.1:7420"',
            'http = "10.0.0.7:7420"',
            "section [http.tls], or use 127.0.0.1 or",
        ),
        ('http = "127.0.0.1:7420"', 'http = "git.example:7420"', "is not a loopback address"),
        ('n2 = "127.0.0.1:7433"', 'n2 = "0.0.0.0:7433"', "name the one to connect to"),
        ('n2 = "127.0.0.1:7433"', 'n2 = "[::]:7433"', "name the one to connect to"),
        ('peer = "127.0.0.1:7423"', 'peer = "0.0.0.0:7423"', "but this node advertises"),
        ("ca_file =", "ca_fiel =", "unknown key 'cluster.tls.ca_fiel'; did you mean 'ca_file'?"),
        ("[cluster.tls]", "[cluster.tsl]", "unknown key 'cluster.tsl'; did you mean 'tls'?"),
        ('http = "127.0.0.1:7420"', 'http = "127.0.0.1:0"', "port must be 1 to 65535"),
        ('http = "127.0.0.1:7420"', 'http = "7420"', "expected HOST:PORT"),
        ('http = "127.0.0.1:7420"', 'http = "127.0.0.1:7421"', "http and grpc both listen on"),
        ('n2 = "127.0.0.1:7433"', 'n2 = "127.0.0.1:7423"', "have one address '127.0.0.1:7423'"),
        ('peer = "127.0.0.1:7423"', 'peer = "127.0.0.1:9"', "but this node advertises"),
        ('"secrets/tokens"', '"data/n1/tokens"', "auth.tokens_file must lie outside"),
        ('"secrets/ca.pem"', '"data/n1/ca"', "cluster.tls.ca_file must lie outside"),
        ('"secrets/n1.pem"', '"data/n1/c"', "cluster.tls.certificate_file must lie outside"),
        ('"secrets/n1.key"', '"data/n1/k"', "cluster.tls.key_file must lie outside"),
        ("[auth]", "[auth", "is not TOML"),
        (PEERS, "", "exactly one of peers, bootstrap, bootstrap_expect and join"),
        ("[cluster]", "[cluster]\nbootstrap = true", "found peers and bootstrap"),
        ("[cluster]", "[cluster]\nbootstrap_expect = 2", "found peers and bootstrap_expect"),
        ("[auth]", '[http.tls]\nkey_file = "k"\n[auth]', "give both or neither"),
        ("[auth]", '[http.tls]\nkye_file = "k"\n[auth]', "did you mean 'key_file'?"),
        ("[auth]", '[advertise]\ngrpc_address = "0.0.0.0:1"\n[auth]', "name one"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert expected in refusal(tmp_path, GOOD.replace(old, new, 1))


def test_nested_sections_name_the_nearest_key_too(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD + "[limits]\npush_bytes_maxx = 1\n")
    assert "unknown key 'limits.push_bytes_maxx'; did you mean 'push_bytes_max'?" in message
    message = refusal(tmp_path, GOOD + "[raft]\nheartbeat_interval_s = 5\n")
    assert "election_timeout_s_min must be above" in message


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD.replace("http =", "htp =") + "[workers]\ncount = 0\n")
    assert "unknown key 'listen.htp'" in message
    assert "missing key 'listen.http'" in message
    assert "workers.count" in message


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml': No such file"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "binary.toml")


@pytest.mark.parametrize("address", ["[::1]:7420", "127.9.9.9:1", "localhost:65535"])
def test_every_loopback_address_is_accepted(tmp_path: Path, address: str) -> None:
    config = load(tmp_path, GOOD.replace("127.0.0.1:7420", address, 1))
    assert config.advertise.http_url == f"http://{address}"


def test_an_address_splits_into_host_and_port() -> None:
    assert split_address("[::1]:7420") == ("::1", 7420)
    assert split_address("localhost:1") == ("localhost", 1)
    for wrong in ("::1:7420", ":1", "host:", "host:65536", "host:٣"):
        with pytest.raises(ValueError, match=r"address|HOST:PORT|port"):
            split_address(wrong)


def private(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o600)
    return path


def test_peers_may_be_on_other_machines(tmp_path: Path) -> None:
    text = GOOD.replace('peer = "127.0.0.1:7423"', 'peer = "0.0.0.0:7423"')
    text = text.replace('n1 = "127.0.0.1:7423"', 'n1 = "n1.example:7423"')
    text = text.replace('n2 = "127.0.0.1:7433"', 'n2 = "10.0.0.2:7423"')
    config = load(tmp_path, text + '[advertise]\npeer_address = "n1.example:7423"\n')
    assert config.listen.peer == "0.0.0.0:7423"
    assert config.cluster.peers["n2"] == "10.0.0.2:7423"


@pytest.mark.parametrize("listener", ["http", "grpc", "metrics"])
def test_clients_on_other_machines_need_tls(tmp_path: Path, listener: str) -> None:
    port = {"http": 7420, "grpc": 7421, "metrics": 7422}[listener]
    text = ways("bootstrap = true").replace(f'{listener} = "127.0.0.1:', f'{listener} = "0.0.0.0:')
    assert f"listen.{listener} '0.0.0.0:{port}' is not a loopback" in refusal(tmp_path, text)
    config = load(tmp_path, text + f'[advertise]\nhost = "git1.example"\n[{listener}.tls]\n')
    advertised = {
        "http": (config.advertise.http_url, "https://git1.example:7420"),
        "grpc": (config.advertise.grpc_address, "git1.example:7421"),
        "metrics": (config.advertise.metrics_url, "https://git1.example:7422/metrics"),
    }
    assert advertised[listener][0] == advertised[listener][1]


def ways(text: str) -> str:
    return GOOD.replace(PEERS, text).replace(
        "[cluster.tls]", '[cluster.tls]\nca_key_file = "secrets/ca.key"'
    )


def test_each_way_into_a_cluster_is_checked(tmp_path: Path) -> None:
    assert load(tmp_path, ways("bootstrap = true")).cluster.bootstrap
    joins = 'join = ["127.0.0.1:7423", "n2.example:7423"]'
    assert load(tmp_path, ways(joins + '\njoin_token_file = "token"')).cluster.join_token_file
    secret = '\nbootstrap_secret_file = "secret"'
    assert load(tmp_path, ways(f"{joins}\nbootstrap_expect = 2{secret}")).cluster.bootstrap_expect
    for text, expected in [
        (f"{joins}\nbootstrap_expect = 3{secret}", "bootstrap_expect is 3, but join lists 2"),
        (f"{joins}\nbootstrap_expect = 2", "bootstrap_expect needs bootstrap_secret_file"),
        (f"bootstrap = true{secret}", "bootstrap_secret_file is for bootstrap_expect"),
        ('bootstrap = true\njoin_token_file = "t"', "join_token_file is for `join`"),
        ('join = ["a:1", "a:1"]', "join has an address twice"),
    ]:
        assert expected in refusal(tmp_path, ways(text))
    without_key = ways("bootstrap = true").replace("ca_key_file", "#")
    assert "bootstrap makes a CA: say where its key goes" in refusal(tmp_path, without_key)


def test_a_node_is_named_like_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "N7.example.com")
    text = ways("bootstrap = true").replace('name = "n1"\n', "").replace("127.0.0.1", "0.0.0.0", 3)
    text += "[http.tls]\n[grpc.tls]\n[metrics.tls]\n"
    config = load(tmp_path, text)
    assert config.node.name == "n7"
    assert config.advertise.http_url == "https://n7.example.com:7420"
    monkeypatch.setattr("socket.gethostname", lambda: "under_score")
    assert "node name 'under_score' must be" in refusal(tmp_path, text)


def test_tokens_may_be_digests_with_a_role(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"secret-of-the-bot").hexdigest()
    path = private(tmp_path / "tokens", f'bot = {{ sha256 = "{digest}", role = "read" }}\n')
    authenticator = Authenticator(load_tokens(path))
    bot = authenticator.authenticate("secret-of-the-bot")
    authenticator.authorize(bot, "read", "a")
    for action in ("write", "create", "delete", "admin"):
        with pytest.raises(PermissionDenied, match="has the role 'read'"):
            authenticator.authorize(bot, action, "a")
    for content, expected in [
        (f'a = {{ sha256 = "{digest}" }}\n', "needs `sha256` and a `role`"),
        (f'a = {{ sha256 = "{digest}", role = "root" }}\n', "of read, write, admin"),
        ('a = { sha256 = "00", role = "read" }\n', "64 lowercase hex digits"),
        ('a = "secret-of-the-bot-and-more"\nb = "secret-of-the-bot-and-more"\n', "same token"),
    ]:
        with pytest.raises(ConfigError, match=expected):
            load_tokens(private(path, content))


def test_certificates_are_read_from_their_files(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=r"cluster\.tls\.ca_file .*secrets/ca\.pem"):
        load_peer_credentials(config)
    (tmp_path / "secrets").mkdir()
    issued = issue_certificate(authority(), "n1", now())
    for path, content in (
        (config.cluster.tls.ca_file, authority().certificate_pem),
        (config.cluster.tls.certificate_file, issued.certificate_pem),
        (config.cluster.tls.key_file, issued.key_pem),
    ):
        path.write_bytes(content)
        path.chmod(0o600)
    assert load_peer_credentials(config).node == "n1"


def test_tokens_are_users_with_tokens_of_their_own(tmp_path: Path) -> None:
    path = private(tmp_path / "tokens", f'admin = "{"a" * 20}"\nci-bot = "{"b" * 20}"\n')
    assert load_tokens(path) == {"admin": "a" * 20, "ci-bot": "b" * 20}
    for content, expected in [
        (f'a = "{"x" * 20}"\nb = "{"x" * 20}"\n', "two users have the same token"),
        ('a = "short"\n', "at least 20 characters"),
        ("a = 7\n", "must be a string"),
        (f'"a b" = "{"x" * 20}"\n', "user name 'a b' is not usable"),
        ("a = \n", "is not TOML"),
    ]:
        with pytest.raises(ConfigError, match=expected):
            load_tokens(private(path, content))


def test_the_reference_documentation_is_that_of_the_model() -> None:
    path = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"
    hint = "run `python -m quorepo.rpc.config_reference > docs/configuration.md`"
    assert path.read_text(encoding="utf-8") == reference(), hint
