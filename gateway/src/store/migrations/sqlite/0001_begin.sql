-- Times are milliseconds since 1970; ids are the 16 bytes of a UUID; hashes are SHA-256.
-- `format` says how the sealed columns of a row are to be read.

-- What this database is, and the oldest binary that it serves.
CREATE TABLE mantel_schema (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL,
    min_binary INTEGER NOT NULL
) STRICT;
INSERT INTO mantel_schema (one, version, min_binary) VALUES (1, 1, 1);

-- The seal keys in use, each with a known text sealed by it: a key that is missing, or another under
-- the same name, is found at the start.
CREATE TABLE seal_keys (
    id TEXT NOT NULL PRIMARY KEY,
    proof BLOB NOT NULL
) STRICT;

-- Raised by each grant that ends, in the same transaction: its numbers follow the order of commits.
CREATE TABLE changes (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    value INTEGER NOT NULL
) STRICT;
INSERT INTO changes (one, value) VALUES (1, 0);

CREATE TABLE ehr_launches (
    hash BLOB NOT NULL PRIMARY KEY,
    format INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX ehr_launches_expires ON ehr_launches (expires);

CREATE TABLE launches (
    id BLOB NOT NULL PRIMARY KEY,
    format INTEGER NOT NULL,
    step TEXT NOT NULL,
    -- hash of the `state` that the EHR returns
    ehr_state BLOB UNIQUE,
    expires INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX launches_expires ON launches (expires);

CREATE TABLE grants (
    id BLOB NOT NULL PRIMARY KEY,
    format INTEGER NOT NULL,
    app TEXT NOT NULL,
    site TEXT NOT NULL,
    registration TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    created INTEGER NOT NULL,
    -- keyed hash of app, site, subject and patient; none: not known to be anybody's
    identity BLOB,
    -- live, in_doubt, ended
    state TEXT NOT NULL,
    generation INTEGER NOT NULL,
    -- the intent, and the one try after it
    doubt_since INTEGER,
    retried_at INTEGER,
    retried_by BLOB,
    -- the lease
    lease_owner BLOB,
    fence INTEGER NOT NULL DEFAULT 0,
    beat INTEGER NOT NULL DEFAULT 0,
    ended_at INTEGER,
    end_reason TEXT,
    -- `changes.value` as it ended
    change INTEGER,
    facts BLOB NOT NULL,
    -- none once it has ended
    tokens BLOB
) STRICT;
CREATE INDEX grants_identity ON grants (identity) WHERE identity IS NOT NULL AND state <> 'ended';
CREATE INDEX grants_state ON grants (state, id);
CREATE INDEX grants_change ON grants (change) WHERE change IS NOT NULL;

CREATE TABLE codes (
    hash BLOB NOT NULL PRIMARY KEY,
    format INTEGER NOT NULL,
    grant_id BLOB NOT NULL,
    expires INTEGER NOT NULL,
    redeemed_at INTEGER,
    -- the access token that it was redeemed for: a repeated call is told from a second use
    access BLOB,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX codes_grant ON codes (grant_id);
CREATE INDEX codes_expires ON codes (expires);

CREATE TABLE access_tokens (
    hash BLOB NOT NULL PRIMARY KEY,
    grant_id BLOB NOT NULL,
    -- the refresh token that was given with it
    refresh BLOB,
    reported TEXT NOT NULL,
    enforced TEXT NOT NULL,
    expires INTEGER NOT NULL
) STRICT;
CREATE INDEX access_tokens_grant ON access_tokens (grant_id);
CREATE INDEX access_tokens_expires ON access_tokens (expires);

CREATE TABLE refresh_tokens (
    hash BLOB NOT NULL PRIMARY KEY,
    grant_id BLOB NOT NULL,
    expires INTEGER NOT NULL,
    superseded_at INTEGER,
    successor BLOB,
    -- the successor, sealed under its predecessor, while that may be shown again
    sealed_successor BLOB,
    grace_until INTEGER
) STRICT;
CREATE INDEX refresh_tokens_grant ON refresh_tokens (grant_id);
CREATE INDEX refresh_tokens_successor ON refresh_tokens (successor) WHERE successor IS NOT NULL;
CREATE INDEX refresh_tokens_expires ON refresh_tokens (expires);

CREATE TABLE subjects (
    -- keyed hash of site and the EHR's subject
    name BLOB NOT NULL PRIMARY KEY,
    format INTEGER NOT NULL,
    sub TEXT NOT NULL,
    -- site and subject, so that they can be named under a new key
    body BLOB NOT NULL
) STRICT;

CREATE TABLE jtis (
    hash BLOB NOT NULL PRIMARY KEY,
    expires INTEGER NOT NULL
) STRICT;
CREATE INDEX jtis_expires ON jtis (expires);

CREATE TABLE signing_keys (
    kid TEXT NOT NULL PRIMARY KEY,
    format INTEGER NOT NULL,
    created INTEGER NOT NULL,
    pkcs8 BLOB NOT NULL
) STRICT;

-- What is still to be done at an EHR.
CREATE TABLE outbox (
    id BLOB NOT NULL PRIMARY KEY,
    format INTEGER NOT NULL,
    kind TEXT NOT NULL,
    not_before INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX outbox_due ON outbox (kind, not_before);
