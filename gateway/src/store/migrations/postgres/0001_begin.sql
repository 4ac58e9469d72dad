-- Times are milliseconds since 1970; ids are the 16 bytes of a UUID; hashes are SHA-256.
-- `format` says how the sealed columns of a row are to be read.

-- What this database is, and the oldest binary that it serves.
CREATE TABLE mantel_schema (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    version BIGINT NOT NULL,
    min_binary BIGINT NOT NULL
);
INSERT INTO mantel_schema (one, version, min_binary) VALUES (1, 1, 1);

-- The seal keys in use, each with a known text sealed by it: a key that is missing, or another under
-- the same name, is found at the start.
CREATE TABLE seal_keys (
    id TEXT NOT NULL PRIMARY KEY,
    proof BYTEA NOT NULL
);

-- Raised by each grant that ends, in the same transaction: its numbers follow the order of commits.
CREATE TABLE changes (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    value BIGINT NOT NULL
);
INSERT INTO changes (one, value) VALUES (1, 0);

CREATE TABLE ehr_launches (
    hash BYTEA NOT NULL PRIMARY KEY,
    format BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    body BYTEA NOT NULL
);
CREATE INDEX ehr_launches_expires ON ehr_launches (expires);

CREATE TABLE launches (
    id BYTEA NOT NULL PRIMARY KEY,
    format BIGINT NOT NULL,
    step TEXT NOT NULL,
    -- hash of the `state` that the EHR returns
    ehr_state BYTEA UNIQUE,
    expires BIGINT NOT NULL,
    body BYTEA NOT NULL
);
CREATE INDEX launches_expires ON launches (expires);

CREATE TABLE grants (
    id BYTEA NOT NULL PRIMARY KEY,
    format BIGINT NOT NULL,
    app TEXT NOT NULL,
    site TEXT NOT NULL,
    registration TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    created BIGINT NOT NULL,
    -- keyed hash of app, site, subject and patient; none: not known to be anybody's
    identity BYTEA,
    -- live, in_doubt, ended
    state TEXT NOT NULL,
    generation BIGINT NOT NULL,
    -- the intent, and the one try after it
    doubt_since BIGINT,
    retried_at BIGINT,
    retried_by BYTEA,
    -- the lease
    lease_owner BYTEA,
    fence BIGINT NOT NULL DEFAULT 0,
    beat BIGINT NOT NULL DEFAULT 0,
    ended_at BIGINT,
    end_reason TEXT,
    -- `changes.value` as it ended
    change BIGINT,
    facts BYTEA NOT NULL,
    -- none once it has ended
    tokens BYTEA
);
-- Unique: of two writers who make a grant for the same identity at once, one has to see the other's.
CREATE UNIQUE INDEX grants_identity ON grants (identity) WHERE identity IS NOT NULL AND state <> 'ended';
CREATE INDEX grants_state ON grants (state, id);
CREATE INDEX grants_change ON grants (change) WHERE change IS NOT NULL;

CREATE TABLE codes (
    hash BYTEA NOT NULL PRIMARY KEY,
    format BIGINT NOT NULL,
    grant_id BYTEA NOT NULL,
    expires BIGINT NOT NULL,
    redeemed_at BIGINT,
    -- the access token that it was redeemed for: a repeated call is told from a second use
    access BYTEA,
    body BYTEA NOT NULL
);
CREATE INDEX codes_grant ON codes (grant_id);
CREATE INDEX codes_expires ON codes (expires);

CREATE TABLE access_tokens (
    hash BYTEA NOT NULL PRIMARY KEY,
    grant_id BYTEA NOT NULL,
    -- the refresh token that was given with it
    refresh BYTEA,
    reported TEXT NOT NULL,
    enforced TEXT NOT NULL,
    expires BIGINT NOT NULL
);
CREATE INDEX access_tokens_grant ON access_tokens (grant_id);
CREATE INDEX access_tokens_expires ON access_tokens (expires);

CREATE TABLE refresh_tokens (
    hash BYTEA NOT NULL PRIMARY KEY,
    grant_id BYTEA NOT NULL,
    expires BIGINT NOT NULL,
    superseded_at BIGINT,
    successor BYTEA,
    -- the successor, sealed under its predecessor, while that may be shown again
    sealed_successor BYTEA,
    grace_until BIGINT
);
CREATE INDEX refresh_tokens_grant ON refresh_tokens (grant_id);
CREATE INDEX refresh_tokens_successor ON refresh_tokens (successor) WHERE successor IS NOT NULL;
CREATE INDEX refresh_tokens_expires ON refresh_tokens (expires);

CREATE TABLE subjects (
    -- keyed hash of site and the EHR's subject
    name BYTEA NOT NULL PRIMARY KEY,
    format BIGINT NOT NULL,
    sub TEXT NOT NULL,
    -- site and subject, so that they can be named under a new key
    body BYTEA NOT NULL
);

CREATE TABLE jtis (
    hash BYTEA NOT NULL PRIMARY KEY,
    expires BIGINT NOT NULL
);
CREATE INDEX jtis_expires ON jtis (expires);

CREATE TABLE signing_keys (
    kid TEXT NOT NULL PRIMARY KEY,
    format BIGINT NOT NULL,
    created BIGINT NOT NULL,
    pkcs8 BYTEA NOT NULL
);

-- What is still to be done at an EHR.
CREATE TABLE outbox (
    id BYTEA NOT NULL PRIMARY KEY,
    format BIGINT NOT NULL,
    kind TEXT NOT NULL,
    not_before BIGINT NOT NULL,
    attempts BIGINT NOT NULL DEFAULT 0,
    body BYTEA NOT NULL
);
CREATE INDEX outbox_due ON outbox (kind, not_before);
