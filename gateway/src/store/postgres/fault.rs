//! PostgreSQL's SQLSTATEs in the store's words. Its primary messages name tables and columns, never values
//! (the DETAIL does, and is left out).

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::store::{StoreError, StoreResult};

fn state(error: &sqlx::Error) -> Option<&str> {
    error.as_database_error()?.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::code)
}

/// https://www.postgresql.org/docs/current/errcodes-appendix.html
#[allow(clippy::needless_pass_by_value, reason = "for `map_err`")]
pub(super) fn of(error: sqlx::Error) -> StoreError {
    let text = match error.as_database_error() {
        Some(database) => format!("{} (SQLSTATE {})", database.message(), database.code().unwrap_or_default()),
        None => error.to_string(),
    };
    match (state(&error), &error) {
        // Serialization failure, deadlock, a lock not had in time: the transaction was rolled back, for another's sake.
        (Some("40001" | "40P01" | "55P03"), _) => StoreError::Contended(text),
        // Disk full; a read-only transaction; no privilege.
        (Some("53100" | "25006" | "42501"), _) => StoreError::ReadOnly(text),
        // Data, constraints, unknown tables and columns, damaged pages.
        (Some(state), _) if matches!(state.get(..2), Some("22" | "23" | "42" | "XX")) => StoreError::Corrupt(text),
        (
            None,
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::RowNotFound
            | sqlx::Error::TypeNotFound { .. },
        ) => StoreError::Corrupt(text),
        _ => StoreError::Unavailable(text),
    }
}

/// Whether the server said no and goes on. Without such a word (the connection is cut, the server ends it) a
/// COMMIT may have taken place.
pub(super) fn is_refusal(error: &sqlx::Error) -> bool {
    let database = error.as_database_error().and_then(|it| it.try_downcast_ref::<PgDatabaseError>());
    database.is_some_and(|it| it.severity() == PgSeverity::Error)
}

/// Whether no waiting helps a connection: who we are, which database, how it is asked.
pub(super) fn is_final(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => true,
        _ => state(error).is_some_and(|state| matches!(state.get(..2), Some("28" | "3D" | "42"))),
    }
}

/// Whether a statement was to make what is there already: a table, a column, another object.
pub(super) fn is_there(error: &sqlx::Error) -> bool {
    matches!(state(error), Some("42P07" | "42701" | "42710" | "42P06"))
}

/// Whether a migration may have met another process that makes the same one: its catalogue entries too
/// (unique violations there), or a lock that it holds.
pub(super) fn is_race(error: &sqlx::Error) -> bool {
    is_there(error) || matches!(state(error), Some("23505" | "40001" | "40P01" | "55P03" | "XX000"))
}

/// `?` for sqlx's results inside operations.
pub(super) trait OrFault<T> {
    fn or_fault(self) -> StoreResult<T>;
}

impl<T> OrFault<T> for Result<T, sqlx::Error> {
    fn or_fault(self) -> StoreResult<T> {
        self.map_err(of)
    }
}
