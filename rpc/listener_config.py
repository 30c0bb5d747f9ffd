"""Where a node listens, with which TLS, and what it tells others about that. See config.py."""

from __future__ import annotations

from pydantic import Field, model_validator

from quorepo.rpc.config_types import (
    AbsolutePath,
    Address,
    Section,
    is_wildcard,
    machine_host,
    split_address,
)
from quorepo.rpc.loopback import is_loopback

__all__ = [
    "AdvertiseSection",
    "GrpcSection",
    "HttpSection",
    "ListenSection",
    "ListenerTls",
    "MetricsSection",
    "check_listeners",
]


class ListenSection(Section):
    """Where this node listens. Off loopback: peers always, the others with TLS of their own."""

    http: Address = Field(description="HOST:PORT of git over HTTP; off loopback with [http.tls].")
    grpc: Address = Field(
        description="HOST:PORT of the public gRPC API; off loopback with [grpc.tls]."
    )
    metrics: Address = Field(description="HOST:PORT of /metrics; off loopback with [metrics.tls].")
    peer: Address = Field(description="HOST:PORT for the other nodes; mutual TLS.")

    @model_validator(mode="after")
    def _addresses_differ(self) -> ListenSection:
        seen: dict[str, str] = {}
        for key in ("http", "grpc", "metrics", "peer"):
            address = getattr(self, key)
            if address in seen:
                raise ValueError(f"{seen[address]} and {key} both listen on {address!r}")
            seen[address] = key
        return self


class ListenerTls(Section):
    """TLS 1.2 or newer for one listener. An empty section is enough where this node has
    `cluster.tls.ca_key_file`: then the cluster's CA signs a certificate for what is advertised."""

    certificate_file: AbsolutePath | None = Field(
        None,
        description="Certificate (PEM), with its chain; read again when it changes. Not set: "
        "signed by the cluster's CA, and again in time.",
    )
    key_file: AbsolutePath | None = Field(
        None, description="The private key (PEM, not encrypted) of the certificate; mode 0600."
    )
    client_ca_file: AbsolutePath | None = Field(
        None,
        description="CA certificates (PEM): who has no certificate of one of them is not heard. "
        "Tokens are needed all the same. For gRPC put the cluster's CA beside the others: nodes "
        "ask each other for `quorepo status`.",
    )
    ca_file: AbsolutePath | None = Field(
        None,
        description="CA certificates (PEM) by which this node knows such listeners of the others; "
        "default: the cluster's CA, or the system's when certificate_file is set.",
    )
    names: list[str] = Field(
        default_factory=list,
        description="More host names and IP addresses for a certificate of the cluster's CA.",
    )

    @model_validator(mode="after")
    def _both_or_neither(self) -> ListenerTls:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file go together: give both or neither")
        if self.certificate_file is not None and self.names:
            raise ValueError("names are for a certificate of the cluster's CA, not for a file")
        return self


class HttpSection(Section):
    """git over HTTP."""

    tls: ListenerTls | None = Field(None)


class GrpcSection(Section):
    """The public gRPC API."""

    tls: ListenerTls | None = Field(None)


class MetricsSection(Section):
    """/metrics. Off loopback it is given to users with a token only."""

    tls: ListenerTls | None = Field(None)


def check_listeners(
    listen: ListenSection, http: HttpSection, grpc: GrpcSection, metrics: MetricsSection
) -> None:
    """Raises ValueError when a listener of clients would leave the machine without TLS."""
    for name, section in (("http", http), ("grpc", grpc), ("metrics", metrics)):
        host, _port = split_address(getattr(listen, name))
        if section.tls is None and not is_loopback(host):
            raise ValueError(
                f"listen.{name} {getattr(listen, name)!r} is not a loopback address, and without "
                f"TLS nothing else is served; add a section [{name}.tls], or use 127.0.0.1 or "
                "[::1]"
            )


class AdvertiseSection(Section):
    """What this node tells others about itself; what is missing follows from [listen]. A node that
    starts with other addresses than before registers them, and is reached there."""

    host: str = Field(
        "",
        description="Host name or address of this node for what is not set below; default: that "
        "of the listener, or the machine's host name where a listener has every address.",
    )
    http_url: str = Field(
        "", description="URL base of git over HTTP; default `http(s)://` and listen.http."
    )
    grpc_address: str = Field("", description="HOST:PORT of gRPC; default listen.grpc.")
    metrics_url: str = Field(
        "", description="URL of the metrics; default: listen.metrics, path /metrics."
    )
    peer_address: str = Field("", description="HOST:PORT for the other nodes; default listen.peer.")

    @model_validator(mode="after")
    def _well_formed(self) -> AdvertiseSection:
        for key in ("http_url", "metrics_url"):
            value = getattr(self, key)
            if value and not value.startswith(("http://", "https://")):
                raise ValueError(f"{key} must start with http:// or https://, got {value!r}")
        for key in ("grpc_address", "peer_address"):
            value = getattr(self, key)
            if value and is_wildcard(split_address(value)[0]):
                raise ValueError(f"{key} {value!r} is every address of a machine: name one")
        if self.host:
            split_address(f"{self._bracketed(self.host)}:1")
        return self

    @staticmethod
    def _bracketed(host: str) -> str:
        return f"[{host}]" if ":" in host and not host.startswith("[") else host

    def _of(self, listener: str) -> str:
        """HOST:PORT that others use for a listener."""
        host, port = split_address(listener)
        host = self.host or (machine_host() if is_wildcard(host) else host)
        return f"{self._bracketed(host)}:{port}"

    def completed(
        self,
        listen: ListenSection,
        http: HttpSection,
        grpc: GrpcSection,
        metrics: MetricsSection,
    ) -> AdvertiseSection:
        """The same with every missing value derived from `listen`."""
        http_scheme = "http" if http.tls is None else "https"
        metrics_scheme = "http" if metrics.tls is None else "https"
        return AdvertiseSection(
            host=self.host,
            http_url=self.http_url.rstrip("/") or f"{http_scheme}://{self._of(listen.http)}",
            grpc_address=self.grpc_address or self._of(listen.grpc),
            metrics_url=self.metrics_url
            or f"{metrics_scheme}://{self._of(listen.metrics)}/metrics",
            peer_address=self.peer_address or self._of(listen.peer),
        )
