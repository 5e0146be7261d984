//! The store's contract on each database, and what is particular to one.

use futures_util::FutureExt as _;
use sqlx::Row as _;

use super::{
    DEFAULT_TENANT, PageRequest, SessionFilter, SessionsQuery, Store, StoreError, conformance,
    db::{Db, Scope},
    postgres_double,
};

async fn in_directory() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/antiphon.db");
    let store = Store::open(path.to_str().unwrap()).await.unwrap();
    (directory, store)
}

#[tokio::test]
async fn sqlite_in_memory_keeps_the_store_contract() {
    conformance::run(|| async { Store::open("sqlite::memory:").await.unwrap() }).await;
}

#[tokio::test]
async fn whoever_stops_waiting_does_not_take_a_database_in_memory_along() {
    let store = Store::open("sqlite::memory:").await.unwrap();
    store.ingest(DEFAULT_TENANT, conformance::batch("room", "key", &["one"])).await.unwrap();
    let count = async || {
        let mut tx = store.db.read(Scope::All).await?;
        tx.number("SELECT COUNT(*) FROM transcripts", &[]).await
    };
    for _ in 0..20 {
        // Asks for the connection, and leaves at the first wait.
        drop(count().now_or_never());
        assert_eq!(count().await.unwrap(), 1);
    }
}

#[tokio::test]
async fn sqlite_in_a_file_keeps_the_store_contract() {
    let directory = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicU32::new(0);
    conformance::run(|| {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = directory.path().join(format!("{number}.db"));
        async move { Store::open(path.to_str().unwrap()).await.unwrap() }
    })
    .await;
}

#[tokio::test]
async fn postgres_keeps_the_store_contract() {
    conformance::run(|| async { Store::open(&postgres_double::database().await).await.unwrap() })
        .await;
}

#[tokio::test]
async fn postgres_itself_hides_the_rows_of_other_tenants() {
    let store = Store::open(&postgres_double::database().await).await.unwrap();
    for tenant in ["a", "b"] {
        store.ingest(tenant, conformance::batch("room", "key", &["one"])).await.unwrap();
    }
    let count = async |scope| {
        let mut tx = store.db.read(scope).await.unwrap();
        // A statement that forgot its tenant.
        tx.number("SELECT COUNT(*) FROM transcripts", &[]).await.unwrap()
    };
    assert_eq!(count(Scope::Tenant("a")).await, 1);
    assert_eq!(count(Scope::Tenant("nobody")).await, 0);
    assert_eq!(count(Scope::All).await, 2);
    let Db::Postgres(pool) = &store.db else { panic!("it is Postgres") };
    let bare = sqlx::query("SELECT COUNT(*) FROM sessions").fetch_one(pool).await.unwrap();
    assert_eq!(bare.get::<i64, _>(0), 0, "without a tenant there is nothing");

    let mut tx = store.db.write(Scope::Tenant("a")).await.unwrap();
    let foreign = "INSERT INTO documents (id, tenant, title, content, created_at)
                   VALUES ('1', 'b', '', '', 0)";
    assert!(tx.run(foreign, &[]).await.is_err(), "nor can one be made for another");
}

#[tokio::test]
async fn every_table_of_postgres_has_its_policy() {
    let store = Store::open(&postgres_double::database().await).await.unwrap();
    let Db::Postgres(pool) = &store.db else { panic!("it is Postgres") };
    let open = sqlx::query(
        "SELECT relname::text FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
           AND NOT (relrowsecurity AND relforcerowsecurity)",
    );
    let open: Vec<String> =
        open.fetch_all(pool).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(open, ["_sqlx_migrations"]);
}

#[tokio::test]
async fn two_first_reports_at_once_make_one_session() {
    for url in ["sqlite::memory:", &postgres_double::database().await] {
        let store = Store::open(url).await.unwrap();
        let report = |id: &'static str| {
            store.ingest(DEFAULT_TENANT, conformance::batch("room", "key", &[id]))
        };
        let (a, b, c, d) = tokio::join!(report("a"), report("b"), report("c"), report("d"));
        let first = a.unwrap().session.id;
        for other in [b, c, d] {
            assert_eq!(other.unwrap().session.id, first);
        }
        let all = conformance::everything();
        let found = store.transcripts(DEFAULT_TENANT, &first, &all).await.unwrap();
        assert_eq!(found.page.total, 4);
    }
}

#[tokio::test]
async fn what_was_ingested_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", directory.path().join("a.db").display());
    for url in [file, postgres_double::database().await] {
        let store = Store::open(&url).await.unwrap();
        let batch = conformance::batch("room", "key", &["one", "two"]);
        let session = store.ingest(DEFAULT_TENANT, batch).await.unwrap().session;
        store.close().await;

        let store = Store::open(&url).await.unwrap();
        let all = conformance::everything();
        let found = store.transcripts(DEFAULT_TENANT, &session.id, &all).await.unwrap();
        assert_eq!(found.page.total, 2);
    }
}

#[tokio::test]
async fn acknowledged_writes_are_synced_and_the_journal_is_a_wal() {
    let (_directory, store) = in_directory().await;
    let Db::Sqlite { writer, .. } = &store.db else { panic!("it is SQLite") };
    let mode: String = sqlx::query("PRAGMA journal_mode").fetch_one(writer).await.unwrap().get(0);
    let synchronous: i64 =
        sqlx::query("PRAGMA synchronous").fetch_one(writer).await.unwrap().get(0);
    assert_eq!((mode.as_str(), synchronous), ("wal", 2), "2 is FULL");
}

#[tokio::test]
async fn the_event_log_of_a_session_is_bounded_and_says_what_it_dropped() {
    for url in ["sqlite::memory:", &postgres_double::database().await] {
        let mut store = Store::open(url).await.unwrap();
        store.events_kept = 5;
        let mut session = String::new();
        for number in 0..23 {
            let id = format!("segment {number}");
            let batch = conformance::batch("room", "key", &[&id]);
            session = store.ingest(DEFAULT_TENANT, batch).await.unwrap().session.id;
        }
        let events = store.events_after(DEFAULT_TENANT, &session, 0, 100).await.unwrap();
        assert!((5..10).contains(&events.len()), "{}", events.len());
        let span = store.event_span(DEFAULT_TENANT, &session).await.unwrap();
        assert_eq!(span.newest, events.last().unwrap().seq);
        assert_eq!(span.dropped_to, events[0].seq - 1);
        let all = conformance::everything();
        let found = store.transcripts(DEFAULT_TENANT, &session, &all).await.unwrap();
        assert_eq!(found.page.total, 23, "transcripts themselves are never dropped");
    }
}

#[tokio::test]
async fn another_database_is_refused_by_name() {
    let error = Store::open("mysql://user:secret@host/db").await.unwrap_err();
    assert!(matches!(error, StoreError::UnsupportedUrl));
    assert!(!error.to_string().contains("secret"));
}

#[tokio::test]
async fn two_processes_on_one_file_wait_for_each_other() {
    let (directory, first) = in_directory().await;
    let path = directory.path().join("deep/antiphon.db");
    let second = Store::open(path.to_str().unwrap()).await.unwrap();
    let report = async |store: &Store, room: &str| {
        for number in 0..20 {
            let id = format!("{room}{number}");
            let batch = conformance::batch(room, "key", &[&id]);
            store.ingest(DEFAULT_TENANT, batch).await.unwrap();
        }
    };
    tokio::join!(report(&first, "a"), report(&second, "b"));
    let query = SessionsQuery::new(SessionFilter::Active, PageRequest { page: 1, limit: 10 });
    let sessions = first.sessions(DEFAULT_TENANT, &query).await.unwrap();
    assert_eq!(sessions.total, 2);
}
