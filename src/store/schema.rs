//! The numbered migrations: embedded, and never edited once released, as the checksum of an applied
//! one is compared. Both databases have the same numbers.

use sqlx::{
    PgPool, Row, SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};

use super::StoreError;

type Numbered = [(i64, &'static str, &'static str); 3];

const SQLITE: Numbered = [
    (
        1,
        "sessions, transcripts, events",
        include_str!("migrations/sqlite/0001_sessions_transcripts_events.sql"),
    ),
    (2, "control", include_str!("migrations/sqlite/0002_control.sql")),
    (3, "usage", include_str!("migrations/sqlite/0003_usage.sql")),
];

const POSTGRES: Numbered = [
    (
        1,
        "sessions, transcripts, events",
        include_str!("migrations/postgres/0001_sessions_transcripts_events.sql"),
    ),
    (2, "control", include_str!("migrations/postgres/0002_control.sql")),
    (3, "usage", include_str!("migrations/postgres/0003_usage.sql")),
];

/// The newest migration's number.
pub const VERSION: i64 = SQLITE[SQLITE.len() - 1].0;

pub fn sqlite() -> Migrator {
    migrator(&SQLITE)
}

pub fn postgres() -> Migrator {
    migrator(&POSTGRES)
}

fn migrator(numbered: &Numbered) -> Migrator {
    let migrations = numbered.iter().map(|&(version, name, sql)| {
        let sql = sql.into_sql_str();
        Migration::new(version, name.into(), MigrationType::Simple, sql, false)
    });
    Migrator::with_migrations(migrations.collect())
}

/// Whether nothing is left to do, so that a role without the right to change tables may go on.
pub async fn is_current(pool: &PgPool) -> Result<bool, StoreError> {
    let table = sqlx::query("SELECT to_regclass('_sqlx_migrations') IS NOT NULL");
    let there: bool = table.fetch_one(pool).await?.try_get(0)?;
    if !there {
        return Ok(false);
    }
    let newest =
        sqlx::query("SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations WHERE success");
    let newest: i64 = newest.fetch_one(pool).await?.try_get(0)?;
    if newest > VERSION {
        return Err(StoreError::NewerSchema);
    }
    Ok(newest == VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_databases_have_the_same_numbers_in_order() {
        let numbers = |all: &Numbered| all.map(|(version, name, _)| (version, name));
        assert_eq!(numbers(&SQLITE), numbers(&POSTGRES));
        assert!(SQLITE.is_sorted_by(|a, b| a.0 + 1 == b.0));
    }
}
