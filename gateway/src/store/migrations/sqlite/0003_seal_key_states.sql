-- held: who starts must hold it; writing: held, and new records are sealed by it; retired: no record is sealed by
-- it, and it may be taken out of the configuration.
ALTER TABLE seal_keys ADD COLUMN state TEXT NOT NULL DEFAULT 'held';
UPDATE mantel_schema SET version = 3;
