//! SQLite's result codes in the store's words. Its messages name tables and columns, never values.

use crate::store::{StoreError, StoreResult};

/// Primary result codes, the low byte of the extended ones (https://www.sqlite.org/rescode.html).
const READONLY: i64 = 8;
const CORRUPT: i64 = 11;
const FULL: i64 = 13;
const CONSTRAINT: i64 = 19;
const MISMATCH: i64 = 20;
const NOTADB: i64 = 26;

#[allow(clippy::needless_pass_by_value, reason = "for `map_err`")]
pub(super) fn of(error: sqlx::Error) -> StoreError {
    let text = error.to_string();
    match &error {
        sqlx::Error::Database(database) => {
            let code = database.code().and_then(|code| code.parse::<i64>().ok()).unwrap_or(0);
            match code & 0xff {
                READONLY | FULL => StoreError::ReadOnly(text),
                CORRUPT | NOTADB | CONSTRAINT | MISMATCH => StoreError::Corrupt(text),
                _ => StoreError::Unavailable(text),
            }
        }
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::RowNotFound
        | sqlx::Error::TypeNotFound { .. } => StoreError::Corrupt(text),
        _ => StoreError::Unavailable(text),
    }
}

/// Whether a statement was to make what is there already.
pub(super) fn is_there(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|it| {
        let text = it.message();
        text.ends_with("already exists") || text.starts_with("duplicate column name")
    })
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
