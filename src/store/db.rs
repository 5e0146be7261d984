//! One way to talk to both databases.
//!
//! The SQL of the store is written once, with `$n` for parameters, which SQLite and Postgres both
//! take. What differs is here and in the migrations: how a transaction begins, and whose rows it
//! may touch.

use std::{path::Path, str::FromStr, time::Duration};

use sqlx::{
    PgPool, Postgres, Row as _, Sqlite, SqlitePool, Transaction,
    postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow},
    query::Query,
    sqlite::{
        SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow,
        SqliteSynchronous,
    },
};

use super::{StoreError, schema};

/// Another process may hold SQLite's write lock this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// A request waits this long for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
const SQLITE_READERS: u32 = 4;
const POSTGRES_CONNECTIONS: u32 = 16;

/// Whose rows a transaction may touch. Every statement names the tenant too; on Postgres the
/// policies of the tables hold even a statement that forgot.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    Tenant(&'a str),
    /// Retention, reconciliation, and what arrives before its tenant is known: a key, a link, a
    /// webhook.
    All,
}

#[derive(Debug)]
pub enum Db {
    /// One connection writes, so that writers of this process queue here and not in SQLite's busy
    /// handler; the busy time-out is for other processes.
    Sqlite {
        writer: SqlitePool,
        reader: SqlitePool,
    },
    Postgres(PgPool),
}

impl Db {
    /// Opens, or makes, a database, and brings its schema up to date.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            return Self::open_postgres(url).await;
        }
        if url.contains("://") && !url.starts_with("sqlite:") {
            return Err(StoreError::UnsupportedUrl);
        }
        Self::open_sqlite(url).await
    }

    /// `synchronous=FULL`: what ingest has acknowledged survives a power cut
    /// (<https://www.sqlite.org/pragma.html#pragma_synchronous>).
    async fn open_sqlite(url: &str) -> Result<Self, StoreError> {
        let options = if url.starts_with("sqlite:") {
            SqliteConnectOptions::from_str(url)?
        } else {
            SqliteConnectOptions::new().filename(url)
        };
        let in_memory = url.contains(":memory:") || url.contains("mode=memory");
        let options = options
            .create_if_missing(true)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        if !in_memory
            && let Some(parent) = options.get_filename().parent().filter(|p| *p != Path::new(""))
        {
            tokio::fs::create_dir_all(parent).await.map_err(StoreError::Directory)?;
        }
        // A database in memory lives as long as its one connection, which whoever stops waiting
        // while it is being tested would close. There is no network that could have cut it.
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.clone())
            .await?;
        schema::sqlite().run(&writer).await?;
        let reader = if in_memory {
            writer.clone()
        } else {
            SqlitePoolOptions::new()
                .max_connections(SQLITE_READERS)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .connect_with(options.pragma("query_only", "ON"))
                .await?
        };
        Ok(Self::Sqlite { writer, reader })
    }

    async fn open_postgres(url: &str) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)?.application_name("antiphon");
        let pool = PgPoolOptions::new()
            .max_connections(POSTGRES_CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options)
            .await?;
        // A role that may only use the tables need not be able to make them.
        if !schema::is_current(&pool).await? {
            schema::postgres().run(&pool).await?;
        }
        let bypasses: bool = sqlx::query(
            "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user",
        )
        .fetch_one(&pool)
        .await?
        .try_get(0)?;
        if bypasses {
            tracing::warn!(
                "this Postgres role bypasses row-level security: let antiphon connect as one that \
                 is no superuser"
            );
        }
        Ok(Self::Postgres(pool))
    }

    /// A transaction that may write. On SQLite it takes the write lock first: one that begins by
    /// reading could fail when it comes to write.
    pub async fn write(&self, scope: Scope<'_>) -> Result<Tx, StoreError> {
        match self {
            Self::Sqlite { writer, .. } => {
                Ok(Tx::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?))
            }
            Self::Postgres(pool) => Self::begin_postgres(pool, scope).await,
        }
    }

    /// A transaction that only reads: one state of the database for all its statements.
    pub async fn read(&self, scope: Scope<'_>) -> Result<Tx, StoreError> {
        match self {
            Self::Sqlite { reader, .. } => Ok(Tx::Sqlite(reader.begin().await?)),
            Self::Postgres(pool) => Self::begin_postgres(pool, scope).await,
        }
    }

    async fn begin_postgres(pool: &PgPool, scope: Scope<'_>) -> Result<Tx, StoreError> {
        let mut tx = pool.begin().await?;
        let tenant = match scope {
            Scope::Tenant(tenant) => tenant,
            Scope::All => "*",
        };
        // Until the transaction ends (the third parameter).
        sqlx::query("SELECT set_config('antiphon.tenant', $1, true)")
            .bind(tenant)
            .execute(&mut *tx)
            .await?;
        Ok(Tx::Postgres(tx))
    }

    /// What one statement finds, each row `read`, in a transaction of its own.
    pub async fn all<T>(
        &self,
        scope: Scope<'_>,
        sql: &'static str,
        args: &[Arg<'_>],
        read: impl Fn(&Row) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.read(scope).await?.all(sql, args).await?;
        rows.iter().map(read).collect()
    }

    /// The first row that one statement finds, in a transaction of its own.
    pub async fn first<T>(
        &self,
        scope: Scope<'_>,
        sql: &'static str,
        args: &[Arg<'_>],
        read: impl Fn(&Row) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let row = self.read(scope).await?.first(sql, args).await?;
        row.as_ref().map(read).transpose()
    }

    /// How many rows one statement touched, in a transaction of its own.
    pub async fn run(
        &self,
        scope: Scope<'_>,
        sql: &'static str,
        args: &[Arg<'_>],
    ) -> Result<u64, StoreError> {
        let mut tx = self.write(scope).await?;
        let touched = tx.run(sql, args).await?;
        tx.commit().await?;
        Ok(touched)
    }

    pub async fn ping(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite { reader, .. } => {
                sqlx::query("SELECT 1").execute(reader).await?;
            }
            Self::Postgres(pool) => {
                sqlx::query("SELECT 1").execute(pool).await?;
            }
        }
        Ok(())
    }

    /// Waits for what is running and closes the connections.
    pub async fn close(&self) {
        match self {
            Self::Sqlite { writer, reader } => {
                reader.close().await;
                writer.close().await;
            }
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// A parameter.
#[derive(Debug, Clone, Copy)]
pub enum Arg<'a> {
    Text(Option<&'a str>),
    Int(Option<i64>),
    Real(f64),
    Bool(bool),
}

impl<'a> From<&'a str> for Arg<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Some(text))
    }
}

impl<'a> From<&'a String> for Arg<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(Some(text))
    }
}

impl<'a> From<Option<&'a str>> for Arg<'a> {
    fn from(text: Option<&'a str>) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a Option<String>> for Arg<'a> {
    fn from(text: &'a Option<String>) -> Self {
        Self::Text(text.as_deref())
    }
}

impl From<i64> for Arg<'_> {
    fn from(number: i64) -> Self {
        Self::Int(Some(number))
    }
}

impl From<u32> for Arg<'_> {
    fn from(number: u32) -> Self {
        Self::Int(Some(number.into()))
    }
}

impl From<Option<i64>> for Arg<'_> {
    fn from(number: Option<i64>) -> Self {
        Self::Int(number)
    }
}

impl From<f64> for Arg<'_> {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

impl From<bool> for Arg<'_> {
    fn from(yes: bool) -> Self {
        Self::Bool(yes)
    }
}

/// The parameters of a statement, each made an [`Arg`].
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::store::db::Arg::from($value)),*] };
}
pub(super) use args;

/// A transaction; rolled back unless it is committed.
#[derive(Debug)]
pub enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

impl Tx {
    /// How many rows it touched.
    pub async fn run(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<u64, StoreError> {
        Ok(match self {
            Self::Sqlite(tx) => for_sqlite(sql, args).execute(&mut **tx).await?.rows_affected(),
            Self::Postgres(tx) => for_postgres(sql, args).execute(&mut **tx).await?.rows_affected(),
        })
    }

    pub async fn all(
        &mut self,
        sql: &'static str,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        Ok(match self {
            Self::Sqlite(tx) => {
                let rows = for_sqlite(sql, args).fetch_all(&mut **tx).await?;
                rows.into_iter().map(Row::Sqlite).collect()
            }
            Self::Postgres(tx) => {
                let rows = for_postgres(sql, args).fetch_all(&mut **tx).await?;
                rows.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    /// The first row, if there is one.
    pub async fn first(
        &mut self,
        sql: &'static str,
        args: &[Arg<'_>],
    ) -> Result<Option<Row>, StoreError> {
        Ok(match self {
            Self::Sqlite(tx) => {
                for_sqlite(sql, args).fetch_optional(&mut **tx).await?.map(Row::Sqlite)
            }
            Self::Postgres(tx) => {
                for_postgres(sql, args).fetch_optional(&mut **tx).await?.map(Row::Postgres)
            }
        })
    }

    /// The one row that such a statement always gives.
    pub async fn one(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<Row, StoreError> {
        self.first(sql, args).await?.ok_or(StoreError::Database(sqlx::Error::RowNotFound))
    }

    /// The one number that such a statement always gives.
    pub async fn number(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<i64, StoreError> {
        match self.one(sql, args).await? {
            Row::Sqlite(row) => Ok(row.try_get(0)?),
            Row::Postgres(row) => Ok(row.try_get(0)?),
        }
    }

    pub async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(tx) => tx.commit().await?,
            Self::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }
}

fn for_sqlite(sql: &'static str, args: &[Arg<'_>]) -> Query<'static, Sqlite, SqliteArguments> {
    args.iter().fold(sqlx::query(sql), |query, arg| match *arg {
        Arg::Text(text) => query.bind(text.map(str::to_owned)),
        Arg::Int(number) => query.bind(number),
        Arg::Real(number) => query.bind(number),
        Arg::Bool(yes) => query.bind(yes),
    })
}

fn for_postgres(sql: &'static str, args: &[Arg<'_>]) -> Query<'static, Postgres, PgArguments> {
    args.iter().fold(sqlx::query(sql), |query, arg| match *arg {
        // Postgres's text cannot hold NUL.
        Arg::Text(text) => query.bind(text.map(|text| text.replace('\0', "\u{fffd}"))),
        Arg::Int(number) => query.bind(number),
        Arg::Real(number) => query.bind(number),
        Arg::Bool(yes) => query.bind(yes),
    })
}

#[derive(Debug)]
pub enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

macro_rules! column {
    ($($name:ident: $type:ty),* $(,)?) => {
        impl Row {
            $(pub fn $name(&self, column: &str) -> Result<$type, StoreError> {
                match self {
                    Self::Sqlite(row) => Ok(row.try_get(column)?),
                    Self::Postgres(row) => Ok(row.try_get(column)?),
                }
            })*
        }
    };
}
column! {
    text: String,
    text_or_none: Option<String>,
    int: i64,
    int_or_none: Option<i64>,
    real: f64,
    bool: bool,
}
