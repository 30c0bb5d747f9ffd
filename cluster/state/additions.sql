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
