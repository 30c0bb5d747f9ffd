-- Tables that came after the first release of the state's format: an older program does not look at them, and a state
-- that it wrote gets them, empty, when it is opened. All of them are replicated.

-- With which a node may join, and who did.
CREATE TABLE IF NOT EXISTS join_tokens (
    token_digest  BLOB PRIMARY KEY,         -- SHA-256 of the certificate inside it; the token itself is nowhere
    node          TEXT NOT NULL,            -- the one name that may join with it; empty: any
    expires_ms    INTEGER NOT NULL,
    actor         TEXT NOT NULL,
    created_ms    INTEGER NOT NULL,
    used_by       TEXT NOT NULL,            -- a replica id; empty: nobody yet
    used_key      BLOB NOT NULL,            -- SHA-256 of that node's public key
    used_ms       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS join_tokens_by_replica ON join_tokens (used_by);

-- The changes of the members that were asked for. One of them runs at a time.
CREATE TABLE IF NOT EXISTS membership_changes (
    change_id          BLOB PRIMARY KEY,    -- the request id of the command that began it
    kind               INTEGER NOT NULL,    -- quorepo.internal.v1.MembershipKind
    node               TEXT NOT NULL,
    replica_id         TEXT NOT NULL,       -- that comes or goes
    former_replica_id  TEXT NOT NULL,       -- that goes before it comes
    peer_address       TEXT NOT NULL,
    keep_learner       INTEGER NOT NULL,
    forced             INTEGER NOT NULL,
    actor              TEXT NOT NULL,
    state              INTEGER NOT NULL,    -- 1 running, 2 cancelling, 3 done, 4 cancelled
    begun_index        INTEGER NOT NULL,    -- log index
    started_ms         INTEGER NOT NULL,
    ended_ms           INTEGER NOT NULL     -- 0 while it runs
) STRICT, WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS membership_changes_by_index ON membership_changes (begun_index);

-- What an operator decided about a node, as long as it stands.
CREATE TABLE IF NOT EXISTS node_marks (
    name          TEXT PRIMARY KEY,
    draining      INTEGER NOT NULL,         -- 1: leads nothing, takes no pushes
    keep_learner  TEXT NOT NULL,            -- a replica id that does not get the vote by itself, or empty
    actor         TEXT NOT NULL,
    since_ms      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Which commands may be proposed: what every member said that it knows. Never falls.
CREATE TABLE IF NOT EXISTS cluster_level (
    singleton     INTEGER PRIMARY KEY CHECK (singleton = 1),
    level         INTEGER NOT NULL,
    raised_index  INTEGER NOT NULL,         -- log index
    raised_ms     INTEGER NOT NULL
) STRICT;

-- The configurations of this group, as they came.
CREATE TABLE IF NOT EXISTS configurations (
    log_index      INTEGER PRIMARY KEY,
    time_ms        INTEGER NOT NULL,
    configuration  BLOB NOT NULL            -- a serialized quorepo.internal.v1.Configuration
) STRICT;
