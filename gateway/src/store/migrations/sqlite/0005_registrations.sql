-- What the registrations were when they were last seen: in the hour after a change no refused refresh token ends its
-- grant at once.
CREATE TABLE registrations (
    name TEXT NOT NULL PRIMARY KEY,
    -- keyed hash of the client id, how we authenticate and the keys
    facts BLOB NOT NULL,
    -- none: they were never others
    changed INTEGER
) STRICT;
UPDATE mantel_schema SET version = 5;
