#!/usr/bin/env bash
# Gets the clients that the tests drive beside git itself: go-git and grpcurl through the Go module proxy,
# JGit from Maven Central. `make clients` calls it. What the machine can't build is named and its tests are
# skipped; what it can build and fails is an error.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=$(cd "$here/../.." && pwd)/build/clients
mkdir -p "$target"

skip() { echo "clients: $1 is not tested: $2"; }

if ! command -v go >/dev/null; then
    skip go-git "no 'go' on this machine"
elif ! (cd "$here/gogit" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly go mod download 2>"$target/go.log"); then
    skip go-git "its modules can't be had: $(tail -n 1 "$target/go.log")"
else
    (cd "$here/gogit" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly go build -o "$target/gogit" .)
    echo "clients: go-git is ready"
fi

if ! command -v go >/dev/null; then
    skip grpcurl "no 'go' on this machine"
elif ! (cd "$here/grpcurl" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly go mod download 2>"$target/grpcurl.log"); then
    skip grpcurl "its modules can't be had: $(tail -n 1 "$target/grpcurl.log")"
else
    (cd "$here/grpcurl" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly \
        go build -o "$target/grpcurl" github.com/fullstorydev/grpcurl/cmd/grpcurl)
    echo "clients: grpcurl is ready"
fi

if ! command -v java >/dev/null || ! command -v mvn >/dev/null; then
    skip JGit "no 'java' or no 'mvn' on this machine"
elif [ -f "$target/jgit/.complete" ] && [ ! "$here/jgit/pom.xml" -nt "$target/jgit/.complete" ]; then
    echo "clients: JGit is ready"
elif ! mvn -q -B -f "$here/jgit/pom.xml" dependency:copy-dependencies \
    -DoutputDirectory="$target/jgit" >"$target/mvn.log" 2>&1; then
    skip JGit "its jars can't be had: $(grep -m 1 ERROR "$target/mvn.log" || true)"
else
    touch "$target/jgit/.complete"
    echo "clients: JGit is ready"
fi
