//! A real Postgres of the machine's own package, on a temporary directory and a Unix socket: no
//! port, nothing of the machine's own server is touched. It ends with the process that started it.

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use sqlx::{Connection, Executor, PgConnection};

const MISSING: &str = "Postgres's server programs (initdb, postgres) are not installed: run \
                       `cargo xtask tools`, or `apt-get install postgresql`, and test again";

struct Server {
    socket: PathBuf,
    /// Its standard input, once closed, ends the server.
    _watch: Child,
}

static SERVER: OnceLock<Server> = OnceLock::new();

/// The URL of a new, empty database, for a role that owns it and is no superuser.
///
/// # Panics
/// When the programs are missing, or the server does not come up.
pub async fn database() -> String {
    let server = SERVER.get_or_init(start);
    let host = server.socket.display();
    let admin = format!("postgres:///postgres?host={host}&user=postgres");
    let name = format!("db_{}", uuid::Uuid::new_v4().simple());
    let mut connection = connect(&admin).await;
    for statement in [
        format!("CREATE ROLE {name} LOGIN NOSUPERUSER"),
        format!("CREATE DATABASE {name} OWNER {name}"),
    ] {
        connection.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
    }
    connection.close().await.unwrap();
    format!("postgres:///{name}?host={host}&user={name}")
}

/// Waits until the server takes connections.
async fn connect(url: &str) -> PgConnection {
    for _ in 0..600 {
        if let Ok(connection) = PgConnection::connect(url).await {
            return connection;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the Postgres of the tests does not come up");
}

fn programs() -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.flatten().map(|version| version.path().join("bin")).collect())
        .unwrap_or_default();
    found.sort();
    found.extend(
        std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .collect::<Vec<_>>()
            .into_iter()
            .rev(),
    );
    let whole = |bin: &PathBuf| bin.join("initdb").is_file() && bin.join("postgres").is_file();
    found.into_iter().rev().find(whole).expect(MISSING)
}

/// Postgres refuses to run as root: then the package's own user, or nobody.
fn user() -> Option<(u32, u32)> {
    let root = fs::metadata("/proc/self").is_ok_and(|it| {
        use std::os::unix::fs::MetadataExt;
        it.uid() == 0
    });
    if !root {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let ids = line.and_then(|line| {
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    Some(ids.unwrap_or((65_534, 65_534)))
}

fn start() -> Server {
    let bin = programs();
    let directory = tempfile::Builder::new().prefix("antiphon-pg").tempdir().unwrap().keep();
    let user = user();
    if let Some((uid, gid)) = user {
        chown(&directory, Some(uid), Some(gid)).unwrap();
    }
    let data = directory.join("data");
    let mut initdb = as_user(&bin.join("initdb"), user);
    let made = initdb
        .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
        .arg(&data)
        .current_dir(&directory)
        .output()
        .unwrap();
    assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    // The shell ends when we do, however that comes about: its input is a pipe of ours.
    let script = r#""$1" -D "$2/data" -c listen_addresses= -c unix_socket_directories="$2" \
        -c fsync=off -c full_page_writes=off -c max_connections=400 -c shared_buffers=32MB \
        </dev/null >"$2/log" 2>&1 &
        read -r _; kill -QUIT $!; wait $!; rm -rf "$2""#;
    let mut shell = as_user(Path::new("/bin/sh"), user);
    let watch = shell
        .args(["-c", script, "sh"])
        .arg(bin.join("postgres"))
        .arg(&directory)
        .current_dir(&directory)
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    Server { socket: directory, _watch: watch }
}

fn as_user(program: &Path, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}
