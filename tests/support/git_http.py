"""The git protocol functions of `quorepo.storage.git` behind a plain HTTP server, without a
cluster.

`StoredRepository` takes the packs and refs of a repository that C git made; `serve` answers real
git clients from it, through the same jobs (and the same JSON) that a node's worker processes run.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from quorepo.storage.errors import QuorepoError
from quorepo.storage.git import jobs, receive_pack, upload_pack
from quorepo.storage.git.advertise import (
    RefsView,
    advertise_capabilities_v2,
    advertise_receive_pack,
    advertise_upload_pack_v0,
)
from quorepo.storage.git.negotiation import negotiate_at_once
from quorepo.storage.git.pktline import FLUSH, encode, error_packet
from quorepo.storage.layout import GroupLayout
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packs import PackSet, describe
from support.git import ENVIRONMENT, git

_names = itertools.count()


class StoredRepository:
    """The objects and refs of `source`, a bare repository of C git, in quorepo's layout.

    `hidden` are prefixes of refs that clients may not see.
    """

    def __init__(self, source: Path, data_dir: Path, hidden: tuple[bytes, ...] = ()) -> None:
        self.source = source
        self._layout = GroupLayout(data_dir, 1)
        self._id = f"{next(_names):032x}"
        self._hidden = hidden
        name = git("rev-parse", "--show-object-format", cwd=source).stdout.strip()
        self.object_format = ObjectFormat.from_name(name)
        self.out_folder = data_dir
        self.digests: list[bytes] = []
        self.jobs_run: list[tuple[str, dict[str, Any]]] = []
        self.refresh()

    def refresh(self) -> None:
        """Take over packs that are new in the source, newest last, and its refs."""
        packs = sorted(
            (self.source / "objects/pack").glob("*.pack"), key=lambda p: p.stat().st_mtime_ns
        )
        self.digests = []
        for pack in packs:
            digest = hashlib.sha256(pack.read_bytes()).digest()
            pack_path, index_path = self._layout.pack_paths(self._id, digest)
            if not pack_path.exists():
                pack_path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(pack.with_suffix(".idx"), index_path)
                shutil.copyfile(pack, pack_path)
            self.digests.append(digest)

    def description(self) -> dict[str, Any]:
        return describe(self._layout, self._id, self.digests, self.object_format)

    def objects(self) -> PackSet:
        return PackSet.from_description(self.description())

    def view(self) -> RefsView:
        listing = git(
            "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", cwd=self.source
        )
        refs = []
        for line in listing.stdout.splitlines():
            name, oid, peeled = line.split(" ")
            if not name.encode().startswith(self._hidden or (b"\0",)):
                # `*objectname` peels once: a tag of a tag needs more.
                full = git("rev-parse", f"{oid}^{{}}", cwd=self.source).stdout if peeled else ""
                refs.append(
                    (name.encode(), bytes.fromhex(oid), bytes.fromhex(full.strip()) or None)
                )
        head = (self.source / "HEAD").read_text().strip()
        if head.startswith("ref: "):
            return RefsView(head[5:].encode(), None, sorted(refs), self.object_format)
        return RefsView(None, bytes.fromhex(head), sorted(refs), self.object_format)

    def run_job(self, job: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """As a worker does: everything passes through JSON."""
        answer = jobs.run(job, json.loads(json.dumps(arguments)))
        decoded: dict[str, Any] = json.loads(json.dumps(answer))
        self.jobs_run.append((job, decoded))
        return decoded

    def fetch(self, request: upload_pack.FetchRequest) -> bytes:
        """The whole answer to a fetch request."""
        try:
            view = self.view()
            refs = {b"HEAD": view.head_oid(), **{name: oid for name, oid, _ in view.refs}}
            request = upload_pack.resolve_wanted_refs(request, refs.get)
            arguments = {
                **upload_pack.job_arguments(request, view),
                "repository": self.description(),
            }
            answer = self.run_job("negotiate", arguments)
        except QuorepoError as error:
            return upload_pack.request_error(request, str(error))
        negotiation = upload_pack.Negotiation.from_json(answer)
        # What needs no worker is the same without one.
        at_once = negotiate_at_once(self.objects(), request, view.tips())
        assert at_once in (None, negotiation)
        preamble = upload_pack.fetch_preamble(request, negotiation)
        if not upload_pack.sends_pack(request, negotiation):
            return preamble
        out = self.out_folder / f"answer-{next(_names)}.pack"
        built = self.run_job("build_pack", {**arguments, "negotiation": answer, "out": str(out)})
        data = out.read_bytes()
        out.unlink()
        assert built["pack_bytes"] == len(data)
        return b"".join(
            [
                preamble,
                upload_pack.progress_frames(request, "served by a test\n"),
                upload_pack.pack_frames(request, data),
                upload_pack.fetch_epilogue(request),
            ]
        )

    def answer(self, version: int, body: bytes) -> bytes:
        """The answer to a POST of git-upload-pack."""
        try:
            request: upload_pack.V2Request
            if version == 2:
                request = upload_pack.parse_v2_request(body, self.object_format)
            else:
                request = upload_pack.parse_v0_request(body, self.object_format, version=version)
        except QuorepoError as error:
            return error_packet(str(error))
        if isinstance(request, upload_pack.LsRefsRequest):
            return upload_pack.ls_refs(request, self.view())
        if isinstance(request, upload_pack.ObjectInfoRequest):
            arguments = upload_pack.object_info_arguments(request, self.view())
            arguments["repository"] = self.description()
            sizes = self.run_job("object_info", arguments)["sizes"]
            return upload_pack.object_info_answer(request, sizes)
        if isinstance(request, upload_pack.BundleUriRequest):
            return upload_pack.bundle_uri_answer(None)
        if not request.wants and not request.haves and not request.want_refs:
            return upload_pack.fetch_preamble(request, upload_pack.Negotiation())
        return self.fetch(request)

    def receive(self, body: bytes) -> bytes:
        """The answer to a POST of git-receive-pack; C git takes the pack in."""
        parser = receive_pack.ReceivePackParser(self.object_format)
        # In two halves, as a body may arrive.
        middle = len(body) // 2
        pack = parser.feed(body[:middle]) + parser.feed(body[middle:])
        parser.close()
        if parser.is_probe:
            return b""
        self.pushed = parser
        unpack = "ok"
        if parser.expects_pack:
            index = ("index-pack", "--stdin", "--fix-thin", "--strict")
            done = subprocess.run(
                ["git", *index], input=pack, cwd=self.source, env=ENVIRONMENT,
                capture_output=True, check=False,
            )  # fmt: skip
            if done.returncode:
                unpack = done.stderr.decode().strip()
        statuses: list[tuple[bytes, receive_pack.RefStatus]] = []
        for command in parser.commands:
            statuses.append((command.name, self._update(command, unpack)))
        self.refresh()
        report = receive_pack.PushReport(unpack, statuses)
        return receive_pack.push_progress(
            "checked by a test\n", parser.capabilities
        ) + receive_pack.report_status(report, parser.capabilities)

    def _update(self, command: receive_pack.RefCommand, unpack: str) -> receive_pack.RefStatus:
        if unpack != "ok":
            return receive_pack.Ng("unpacker error")
        if command.name.endswith(b"/unknown"):
            return receive_pack.Unknown()
        zero = bytes(self.object_format.hash_bytes)
        done = git(
            "update-ref",
            command.name.decode(),
            (command.new or zero).hex(),
            (command.old or zero).hex(),
            cwd=self.source,
            check=False,
        )
        return receive_pack.Ng("stale info") if done.returncode else receive_pack.Ok()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repository: StoredRepository

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _version(self) -> int:
        found = re.search(r"version=(\d)", self.headers.get("Git-Protocol", ""))
        return int(found.group(1)) if found else 0

    def do_GET(self) -> None:
        service = self.path.partition("service=")[2]
        view = self.repository.view()
        version = self._version()
        body = encode(b"# service=" + service.encode() + b"\n") + FLUSH
        if service == "git-receive-pack":
            body += advertise_receive_pack(view, min(version, 1))
        elif version == 2:
            body = advertise_capabilities_v2(view.object_format)
        else:
            body += advertise_upload_pack_v0(view, version)
        self._send(body, f"application/x-{service}-advertisement")

    def do_POST(self) -> None:
        body = self._body()
        service = self.path.rpartition("/")[2]
        if service == "git-receive-pack":
            answer = self.repository.receive(body)
        else:
            answer = self.repository.answer(self._version(), body)
        self._send(answer, f"application/x-{service}-result")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(pieces)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _send(self, body: bytes, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serve(repository: StoredRepository) -> Iterator[str]:
    """Serves one repository on loopback; yields its URL."""
    handler = type("Handler", (_Handler,), {"repository": repository})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/repository.git"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
