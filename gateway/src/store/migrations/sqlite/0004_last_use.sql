-- When a grant whose session ends by idleness was last used, at whichever process; a little behind.
ALTER TABLE grants ADD COLUMN used_at INTEGER;
UPDATE mantel_schema SET version = 4;
