"""The section [cluster]: which cluster a node belongs to, and how it gets there. See config.py."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from quorepo.rpc.config_types import AbsolutePath, NodeName, ReachableAddress, Section

__all__ = ["ClusterSection", "TlsSection"]


class TlsSection(Section):
    """How this node proves to the others who it is. A CA serves one cluster and no other."""

    ca_file: AbsolutePath = Field(
        description="CA certificates (PEM) that sign the nodes of this cluster and nothing else."
    )
    certificate_file: AbsolutePath = Field(
        description="This node's certificate (PEM) with the DNS name <node.name>.node.quorepo."
    )
    key_file: AbsolutePath = Field(
        description="The private key (PEM, not encrypted) of the certificate; mode 0600."
    )
    ca_key_file: AbsolutePath | None = Field(
        None,
        description="The CA's private key (PEM); mode 0600. With it a node lets others join, and "
        "renews certificates; a node that bootstraps or joins writes it. Not set: certificates are "
        "made elsewhere.",
    )


class ClusterSection(Section):
    """The cluster that this node belongs to, and how it gets there: one of `peers`, `bootstrap`,
    `bootstrap_expect` with `join`, or `join` alone. A node that is a member looks at none of it."""

    peers: dict[NodeName, ReachableAddress] = Field(
        default_factory=dict,
        description="Peer address of every founding member by name, this node included; each has "
        "its certificate already.",
    )
    bootstrap: bool = Field(
        False,
        description="Does this node begin a new cluster by itself? Others join it. Ignored once "
        "it is a member; refused when its disk was emptied afterwards.",
    )
    bootstrap_expect: int | None = Field(
        None,
        ge=1,
        le=9,
        description="As many nodes as begin a new cluster together: exactly those at `join`, this "
        "one included, with the same configuration and the same bootstrap_secret_file.",
    )
    bootstrap_secret_file: AbsolutePath | None = Field(
        None,
        description="Secret that the nodes of bootstrap_expect share, made by `quorepo init`; mode "
        "0600. The CA of the cluster follows from it: keep it as you keep a CA's key, or delete it "
        "everywhere once the cluster is formed.",
    )
    join: list[ReachableAddress] = Field(
        default_factory=list,
        description="Peer addresses HOST:PORT of members, asked in turn; names are resolved anew "
        "each time.",
    )
    join_token_file: AbsolutePath | None = Field(
        None,
        description="One-time token of `quorepo node token`, for a node without a certificate; "
        "mode 0600. Not needed any more once the node has joined.",
    )
    tls: TlsSection
    rejoin_empty: bool = Field(
        False,
        description="May this node come back by itself as a new replica when its disk is empty? If "
        "not, it waits for `quorepo node replace` on another node.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> ClusterSection:
        seen: dict[str, str] = {}
        for name, address in self.peers.items():
            if address in seen:
                raise ValueError(
                    f"peers {seen[address]!r} and {name!r} have one address {address!r}"
                )
            seen[address] = name
        if len(set(self.join)) != len(self.join):
            raise ValueError("join has an address twice")
        ways = [
            name
            for name, given in (
                ("peers", bool(self.peers)),
                ("bootstrap", self.bootstrap),
                ("bootstrap_expect", self.bootstrap_expect is not None),
                ("join", bool(self.join) and self.bootstrap_expect is None),
            )
            if given
        ]
        if len(ways) != 1:
            found = " and ".join(ways) if ways else "none"
            raise ValueError(
                f"exactly one of peers, bootstrap, bootstrap_expect and join says how this node "
                f"gets into its cluster; found {found}"
            )
        self._check_expected()
        if (self.bootstrap or self.bootstrap_expect) and self.tls.ca_key_file is None:
            raise ValueError(f"{ways[0]} makes a CA: say where its key goes, tls.ca_key_file")
        if self.join_token_file is not None and ways != ["join"]:
            raise ValueError(f"join_token_file is for `join`, not for {ways[0]}")
        return self

    def _check_expected(self) -> None:
        if self.bootstrap_expect is None:
            if self.bootstrap_secret_file is not None:
                raise ValueError("bootstrap_secret_file is for bootstrap_expect")
            return
        if len(self.join) != self.bootstrap_expect:
            raise ValueError(
                f"bootstrap_expect is {self.bootstrap_expect}, but join lists {len(self.join)}: it "
                "must name every founding node, this one included, alike on all of them"
            )
        if self.bootstrap_secret_file is None:
            raise ValueError("bootstrap_expect needs bootstrap_secret_file")

    def check_own_address(self, node: str, peer_address: str) -> None:
        """Raises ValueError when `peers` does not know this node by what it tells the others."""
        if not self.peers:
            return
        expected = self.peers.get(node)
        if expected is None:
            known = ", ".join(sorted(self.peers))
            raise ValueError(f"node.name {node!r} is not in cluster.peers ({known})")
        if expected != peer_address:
            raise ValueError(
                f"cluster.peers.{node} is {expected!r}, but this node advertises {peer_address!r} "
                "to its peers (advertise.peer_address or listen.peer)"
            )

    def files(self) -> list[tuple[str, Path | None]]:
        """Every file that must outlive an emptied data directory, by its key."""
        return [
            ("cluster.tls.ca_file", self.tls.ca_file),
            ("cluster.tls.certificate_file", self.tls.certificate_file),
            ("cluster.tls.key_file", self.tls.key_file),
            ("cluster.tls.ca_key_file", self.tls.ca_key_file),
            ("cluster.bootstrap_secret_file", self.bootstrap_secret_file),
            ("cluster.join_token_file", self.join_token_file),
        ]
