//! Opening: the schema. What is wrong is said here, with its name, before the first request.

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};

use super::{Connection, DIALECT, TABLES, fault, fault::OrFault as _};
use crate::store::{Schema, StoreError, StoreResult};

/// Refuses a database that asks for a later binary, or that is none of ours.
pub(in crate::store) async fn check_schema(on: &mut Connection, level: i64) -> StoreResult<()> {
    let tables: Vec<(String,)> = sqlx::query_as(TABLES).fetch_all(&mut *on).await.or_fault()?;
    if !tables.iter().any(|(name,)| name == "mantel_schema") {
        let foreign = tables.iter().find(|(name,)| name != "_sqlx_migrations" && !name.starts_with("sqlite_"));
        return foreign.map_or(Ok(()), |(name,)| {
            Err(StoreError::Corrupt(format!(
                "this is another program's database (it has a table {name:?} and none named \"mantel_schema\"): give \
                 Mantel one of its own"
            )))
        });
    }
    let schema: Option<(i64, i64)> =
        sqlx::query_as("SELECT version, min_binary FROM mantel_schema").fetch_optional(on).await.or_fault()?;
    match schema {
        None => Err(StoreError::Corrupt("mantel_schema is empty: restore the database from a backup".into())),
        Some((version, needs)) if needs > level => Err(StoreError::Incompatible(format!(
            "the database has schema {version}, which asks for a binary of level {needs} or later; this one is of \
             level {level}: run the newer one"
        ))),
        Some(_) => Ok(()),
    }
}

/// Takes the steps that the database has not taken.
pub(in crate::store) async fn migrate(on: &mut Connection, schema: &Schema) -> Result<(), MigrateError> {
    use sqlx::SqlSafeStr as _;
    let migrations = schema
        .steps()
        .iter()
        .map(|step| {
            let text = DIALECT(step).into_sql_str();
            Migration::new(step.version, step.name.into(), MigrationType::Simple, text, false)
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    // A later binary's migrations are no fault: `min_binary` says whether this one may still serve.
    migrator.set_ignore_missing(true);
    // Advisory locks are PostgreSQL's own; each step and the note of it are one transaction instead.
    migrator.set_locking(false);
    migrator.run(on).await
}

/// Why a step was not taken, and what to do.
pub(in crate::store) fn explain(error: MigrateError, schema: &Schema) -> StoreError {
    let name = |version: i64| {
        let step = schema.steps().iter().find(|step| step.version == version);
        format!("migration {version} ({})", step.map_or("of a later binary", |step| step.name))
    };
    match error {
        MigrateError::ExecuteMigration(error, version) if fault::is_there(&error) => StoreError::Corrupt(format!(
            "{} finds what it is to make there already ({error}), but `_sqlx_migrations` has no note of it: it was cut \
             in the middle, or the note was removed. Restore a backup; or, if no gateway has served since, drop what it \
             made and start again",
            name(version)
        )),
        MigrateError::ExecuteMigration(error, version) => {
            fault::of(error).within(&format!("{} failed and was undone", name(version)))
        }
        MigrateError::Execute(error) => fault::of(error),
        MigrateError::Dirty(version) => StoreError::Corrupt(format!(
            "{} was begun and not finished (`_sqlx_migrations` says success = false): restore a backup from before it; \
             or make what its file makes and is missing, and set success there to true",
            name(version)
        )),
        MigrateError::VersionMismatch(version) => StoreError::Corrupt(format!(
            "{} was made here in another wording than this binary's: the database belongs to another build; run that",
            name(version)
        )),
        other => StoreError::Corrupt(other.to_string()),
    }
}
