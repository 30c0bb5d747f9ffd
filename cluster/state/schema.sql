-- The state of one group: what its log says, up to applied_index. One schema for the directory (group 0: paths,
-- nodes) and for storage groups (the rest). Everything here is replicated and deterministic, except table `local`.
-- Times are log time, Unix ms. Object ids, ref names and digests are raw bytes. Written by cluster/state/machine*.py only.

CREATE TABLE position (
    singleton            INTEGER PRIMARY KEY CHECK (singleton = 1),
    group_id             INTEGER NOT NULL,
    applied_index        INTEGER NOT NULL,
    applied_term         INTEGER NOT NULL,
    log_time_ms          INTEGER NOT NULL,
    configuration        BLOB,              -- newest Configuration at or below applied_index
    configuration_index  INTEGER NOT NULL   -- its index, 0 while there is none
) STRICT;

-- Of this replica alone: never exported, never compared.
CREATE TABLE local (
    singleton  INTEGER PRIMARY KEY CHECK (singleton = 1),
    syncs      INTEGER NOT NULL             -- counted up so that a commit has something to write and sync
) STRICT;

CREATE TABLE repositories (
    repository_id  TEXT PRIMARY KEY,
    incarnation    INTEGER NOT NULL,
    counter        INTEGER NOT NULL,        -- (incarnation, counter) is the revision
    object_format  INTEGER NOT NULL,        -- quorepo.internal.v1.ObjectFormat
    head           BLOB NOT NULL,           -- full name of the branch HEAD points to, born or not
    head_open      INTEGER NOT NULL,        -- 1: the first branches that are created decide HEAD
    prune_epoch    INTEGER NOT NULL,
    checksum       BLOB NOT NULL,           -- rolling SHA-256 over every effect on the repository
    created_ms     INTEGER NOT NULL,
    deleted_ms     INTEGER,                 -- tombstone; refs, packs and history stay for retention
    detached_head  BLOB,                    -- object id that HEAD points to instead of a branch
    description    TEXT NOT NULL,
    read_only      INTEGER NOT NULL,        -- 1: refs can't be changed
    purge_ms       INTEGER,                 -- of a tombstone: from then on it can't be taken back
    deleted_path   TEXT,                    -- of a tombstone: the path that named it
    forked_from    TEXT                     -- repository id of a fork's source
) STRICT, WITHOUT ROWID;

-- Tombstones are read at every start.
CREATE INDEX repositories_deleted ON repositories (repository_id) WHERE deleted_ms IS NOT NULL;

CREATE TABLE refs (
    repository_id  TEXT NOT NULL,
    name           BLOB NOT NULL,
    oid            BLOB NOT NULL,
    PRIMARY KEY (repository_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE packs (
    repository_id      TEXT NOT NULL,
    digest             BLOB NOT NULL,       -- SHA-256 of the pack file
    index_digest       BLOB NOT NULL,       -- SHA-256 of the .idx file
    pack_bytes         INTEGER NOT NULL,
    index_bytes        INTEGER NOT NULL,
    object_count       INTEGER NOT NULL,
    thin_bytes         INTEGER NOT NULL,
    thin_object_count  INTEGER NOT NULL,
    added_counter      INTEGER NOT NULL,    -- revision counter of the transaction that added it
    arrived_ms         INTEGER NOT NULL,    -- when its youngest object was pushed; consolidations keep it
    PRIMARY KEY (repository_id, digest)
) STRICT, WITHOUT ROWID;

-- One pack file may belong to several repositories of the group (the same push made twice).
CREATE INDEX packs_by_digest ON packs (digest, repository_id);

-- Packs that ReplacePacks or Prune took out: what retention and reads at a point in time go by. A pack may
-- come back with a later push and be removed again.
CREATE TABLE removed_packs (
    repository_id      TEXT NOT NULL,
    digest             BLOB NOT NULL,
    removed_counter    INTEGER NOT NULL,    -- revision counter of the transaction that removed it
    index_digest       BLOB NOT NULL,
    pack_bytes         INTEGER NOT NULL,
    index_bytes        INTEGER NOT NULL,
    object_count       INTEGER NOT NULL,
    thin_bytes         INTEGER NOT NULL,
    thin_object_count  INTEGER NOT NULL,
    added_counter      INTEGER NOT NULL,
    arrived_ms         INTEGER NOT NULL,
    removed_index      INTEGER NOT NULL,    -- log index of the entry that removed it
    removed_ms         INTEGER NOT NULL,    -- its log time
    PRIMARY KEY (repository_id, digest, removed_counter)
) STRICT, WITHOUT ROWID;

CREATE INDEX removed_packs_by_time ON removed_packs (removed_ms, digest);

-- One row per revision of a repository: who moved it there, and when.
CREATE TABLE transactions (
    repository_id  TEXT NOT NULL,
    counter        INTEGER NOT NULL,
    kind           TEXT NOT NULL CHECK (kind IN ('create', 'update', 'delete', 'replace', 'prune',
                   'head', 'settings', 'undelete', 'fork')),
    log_index      INTEGER NOT NULL,
    time_ms        INTEGER NOT NULL,
    actor          TEXT NOT NULL,
    request_id     BLOB NOT NULL,
    PRIMARY KEY (repository_id, counter)
) STRICT, WITHOUT ROWID;

-- What is watched in log order. One entry makes at most one transaction.
CREATE INDEX transactions_by_index ON transactions (log_index);

-- What each revision did to refs; kept for audit and for reads at a point in time. HEAD stands
-- here as far as it is detached.
CREATE TABLE ref_changes (
    repository_id  TEXT NOT NULL,
    counter        INTEGER NOT NULL,
    position       INTEGER NOT NULL,        -- order within the transaction
    name           BLOB NOT NULL,
    old_oid        BLOB,                    -- NULL: the ref was created
    new_oid        BLOB,                    -- NULL: the ref was deleted
    PRIMARY KEY (repository_id, counter, position)
) STRICT, WITHOUT ROWID;

-- Answers already given, for exactly-once. `scope` is the repository id, or empty for the directory's commands.
CREATE TABLE requests (
    request_id  BLOB NOT NULL,
    scope       TEXT NOT NULL,
    log_index   INTEGER NOT NULL,
    age_ms      INTEGER NOT NULL,           -- max(log time when applied, first seen): the window starts here
    result      BLOB NOT NULL,              -- a serialized quorepo.internal.v1.Result
    PRIMARY KEY (request_id, scope)
) STRICT, WITHOUT ROWID;

CREATE INDEX requests_by_age ON requests (age_ms, request_id, scope);

-- The directory: which repository a path names.
CREATE TABLE paths (
    path           TEXT PRIMARY KEY,
    repository_id  TEXT NOT NULL,
    group_id       INTEGER NOT NULL,
    created_ms     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX paths_by_repository ON paths (repository_id, path);

CREATE TABLE nodes (
    name           TEXT PRIMARY KEY,
    replica_id     TEXT NOT NULL,
    peer_address   TEXT NOT NULL,
    http_url       TEXT NOT NULL,
    grpc_address   TEXT NOT NULL,
    metrics_url    TEXT NOT NULL,
    version        TEXT NOT NULL,
    registered_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
