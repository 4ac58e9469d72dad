-- The gateway processes that share this database. Each raises its own beat; who watches judges by its own
-- monotonic clock whether a beat stands still, and `seen`, by wall time, only clears away what died long ago.
CREATE TABLE replicas (
    boot BYTEA NOT NULL PRIMARY KEY,
    beat BIGINT NOT NULL,
    seen BIGINT NOT NULL,
    -- JSON: version, seal keys held, the one that writes
    body TEXT NOT NULL
);
UPDATE mantel_schema SET version = 2;
