//! livekit's own end-to-end tests, as its crate ships them, over the engine of this workspace.
//!
//! They are copied out of cargo's registry, patched to our facade, and run against a
//! livekit-server in development mode that is started for them on free ports.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fmt::Write as _,
    fs::{self, File},
    io::{BufRead, BufReader, ErrorKind},
    net::{TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{step::Failure, workspace::Workspace};

/// One file of livekit's tests.
#[derive(Debug, Clone, Copy)]
struct TestFile {
    name: &'static str,
    /// Tests of it that are not run.
    excluded: &'static [&'static str],
    /// Tests of it that run at the same time.
    threads: u8,
    /// How much is logged (`RUST_LOG`), where that is not as the tests have it.
    log: Option<&'static str>,
}

impl TestFile {
    /// Most tests mostly wait, for time-outs of seconds.
    const fn new(name: &'static str) -> Self {
        Self { name, excluded: &[], threads: 4, log: None }
    }
}

/// What is run. Whatever is excluded publishes video, which this engine refuses.
const FILES: [TestFile; 10] = [
    TestFile::new("audio_test"),
    // One of its tests bounds a room's close by no time at all, which tokio rounds up to a millisecond,
    // and wants that to be too short. Google's engine takes longer, and so does this one if it logs.
    TestFile { log: Some("trace"), ..TestFile::new("room_test") },
    TestFile::new("rpc_test"),
    TestFile {
        excluded: &[
            "test_full_reconnect_with_published_track_recovers",
            "test_room_deleted_disconnects_without_reconnect",
        ],
        ..TestFile::new("reconnection_test")
    },
    TestFile::new("data_channel_test"),
    TestFile::new("data_stream_test"),
    // It holds time-outs to 20 ms, and beside them publishes 50 MB at once.
    TestFile { threads: 1, ..TestFile::new("data_track_test") },
    TestFile::new("data_channel_encryption"),
    TestFile::new("engine_lifecycle_test"),
    TestFile {
        excluded: &[
            "test_v0_publish_ten_video_and_ten_audio_tracks",
            "test_v1_publish_ten_video_and_ten_audio_tracks",
        ],
        ..TestFile::new("peer_connection_signaling_test")
    },
];

/// Of the features of livekit, those that antiphon has, and the tests'.
const FEATURES: &str = "tokio,rustls-tls-webpki-roots,__lk-e2e-test";

const SERVER_STARTS_WITHIN: Duration = Duration::from_secs(20);
/// The longest file waits out livekit's whole reconnect sequence, about 90 s.
const FILE_ENDS_WITHIN: Duration = Duration::from_mins(5);

/// Builds and runs all files, or the one that is named.
pub fn run(workspace: &Workspace, server: &Path, only: Option<&str>) -> Result<(), Failure> {
    let files: Vec<_> =
        FILES.into_iter().filter(|file| only.is_none_or(|only| only == file.name)).collect();
    if files.is_empty() {
        let names: Vec<_> = FILES.iter().map(|file| file.name).collect();
        return Err(Failure::new(format!("no such file; there are: {}", names.join(", "))));
    }
    let folder = prepare(workspace)?;
    let missing: Vec<_> = files
        .iter()
        .map(|file| file.name)
        .filter(|name| !folder.join("tests").join(name).with_extension("rs").is_file())
        .collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(Failure::new(format!("livekit's tests folder lacks {missing}")));
    }
    let executables = build(workspace, &folder, &files)?;
    let server = Server::start(server, &folder)?;
    let mut outcomes = Vec::new();
    for file in files {
        let executable = executables
            .get(file.name)
            .ok_or_else(|| Failure::new(format!("cargo built no test {}", file.name)))?;
        outcomes.push((file, test(&file, executable, &folder, &server)?));
    }
    report(&outcomes)
}

fn report(outcomes: &[(TestFile, Outcome)]) -> Result<(), Failure> {
    println!("\n{:<34} passed/total", "file");
    let mut failed = Vec::new();
    for (TestFile { name, excluded, .. }, outcome) in outcomes {
        let Outcome { passed, total, seconds, .. } = outcome;
        let left_out = match excluded.len() {
            0 => String::new(),
            count => format!(", {count} excluded (they publish video): {}", excluded.join(", ")),
        };
        println!("{name:<34} {passed}/{total} in {seconds:.0} s{left_out}");
        if let Some(fault) = outcome.fault(excluded.len()) {
            failed.push(format!("{name}: {fault}"));
        }
    }
    if failed.is_empty() {
        println!("\nxtask livekit-e2e: all is well");
        return Ok(());
    }
    Err(Failure::new(failed.join("; ")))
}

// ------------------------------------------------------------------- source

/// A copy of livekit's source that uses our engine; returns its folder. What is there already and
/// the same is left alone, so that cargo builds nothing twice.
fn prepare(workspace: &Workspace) -> Result<PathBuf, Failure> {
    let (source, version) = Workspace::source_of("livekit")?;
    let base = workspace.target.join("livekit-e2e");
    let folder = base.join(format!("livekit-{version}"));
    copy(&source, &folder)?;
    let ours = read(&workspace.root.join("Cargo.toml"))?;
    let mut manifest = read(&source.join("Cargo.toml"))?;
    manifest.push_str("\n[workspace]\n\n[patch.crates-io]\n");
    for name in ["libwebrtc", "os_info"] {
        let package = workspace.packages.iter().find(|package| package.name == name);
        let package =
            package.ok_or_else(|| Failure::new(format!("the workspace has no package {name}")))?;
        let path = Value::from(package.root.to_string_lossy());
        writeln!(manifest, "{name} = {{ path = {path} }}").map_err(|_| Failure::new("manifest"))?;
    }
    manifest.push('\n');
    manifest.push_str(&development_profile(&ours));
    write_if_new(&folder.join("Cargo.toml"), manifest.as_bytes())?;
    // The versions are those of the workspace; cargo adds what the tests need beside them.
    let lock = read(&workspace.root.join("Cargo.lock"))?;
    if write_if_new(&base.join("workspace.lock"), lock.as_bytes())?
        || !folder.join("Cargo.lock").is_file()
    {
        write_if_new(&folder.join("Cargo.lock"), lock.as_bytes())?;
    }
    Ok(folder)
}

/// The workspace's `[profile.dev…]` tables: with the same profile, what cargo has built for the
/// workspace is not built again.
fn development_profile(manifest: &str) -> String {
    let mut inside = false;
    let mut profile = String::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.starts_with("[profile.dev");
        }
        if inside && !line.starts_with('#') {
            profile.push_str(line);
            profile.push('\n');
        }
    }
    profile
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::create_dir_all(to).map_err(|error| at(to, &error))?;
    for entry in fs::read_dir(from).map_err(|error| at(from, &error))? {
        let entry = entry.map_err(|error| at(from, &error))?;
        let (from, name) = (entry.path(), entry.file_name());
        if from.is_dir() {
            copy(&from, &to.join(name))?;
        } else if name != "Cargo.toml" && name != "Cargo.lock" {
            let bytes = fs::read(&from).map_err(|error| at(&from, &error))?;
            write_if_new(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}

/// Says whether the file held something else before.
fn write_if_new(path: &Path, bytes: &[u8]) -> Result<bool, Failure> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    fs::write(path, bytes).map_err(|error| at(path, &error))?;
    Ok(true)
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| at(path, &error))
}

fn at(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}

// -------------------------------------------------------------------- build

/// Builds the test programs; returns them by name.
fn build(
    workspace: &Workspace,
    folder: &Path,
    files: &[TestFile],
) -> Result<BTreeMap<String, PathBuf>, Failure> {
    println!("\n==> build livekit's tests, in {}", folder.display());
    let begun = now();
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let output = Command::new(cargo)
        .args(["test", "--no-run", "--no-default-features", "--features", FEATURES])
        .args(["--message-format", "json-render-diagnostics"])
        .args(files.iter().flat_map(|file| ["--test", file.name]))
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", &workspace.target)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failure::new(format!("cargo test --no-run: {error}")))?;
    if !output.status.success() {
        return Err(Failure::new("livekit's tests do not compile over this engine"));
    }
    println!("<== build: {:.1} s", begun.elapsed().as_secs_f32());
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(executable).collect())
}

/// The name and the path of a test program, if cargo's message is about one.
fn executable(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    let is_test = target["kind"].as_array()?.iter().any(|kind| kind == "test");
    let path = message["executable"].as_str().filter(|_| is_test)?;
    Some((target["name"].as_str()?.to_owned(), PathBuf::from(path)))
}

// ------------------------------------------------------------------- server

/// A livekit-server in development mode; ends when dropped.
#[derive(Debug)]
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start(program: &Path, folder: &Path) -> Result<Self, Failure> {
        let (port, tcp, udp) = (free_tcp()?, free_tcp()?, free_udp()?);
        let config = folder.join("livekit.yaml");
        let text = format!(
            "port: {port}\nbind_addresses: [127.0.0.1]\nlog_level: info\nrtc:\n  tcp_port: {tcp}\n  \
             udp_port: {udp}\n  node_ip: 127.0.0.1\n  enable_loopback_candidate: true\n"
        );
        fs::write(&config, text).map_err(|error| at(&config, &error))?;
        let path = folder.join("livekit.log");
        let log = File::create(&path).map_err(|error| at(&path, &error))?;
        let errors = log.try_clone().map_err(|error| at(&path, &error))?;
        println!("\n==> livekit-server on port {port}, its log is {}", path.display());
        let process = Command::new(program)
            .args(["--dev", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|error| at(program, &error))?;
        let mut server = Self { process, port };
        let begun = now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.process.try_wait().is_ok_and(|status| status.is_some());
            if ended || begun.elapsed() > SERVER_STARTS_WITHIN {
                let log = path.display();
                return Err(Failure::new(format!("livekit-server did not start; see {log}")));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_tcp() -> Result<u16, Failure> {
    let socket = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    socket.map(|address| address.port()).map_err(|error| Failure::new(format!("a port: {error}")))
}

fn free_udp() -> Result<u16, Failure> {
    let socket = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    socket.map(|address| address.port()).map_err(|error| Failure::new(format!("a port: {error}")))
}

// --------------------------------------------------------------------- test

#[derive(Debug, Default, PartialEq)]
struct Outcome {
    passed: usize,
    /// Passed, failed and ignored.
    total: usize,
    /// Not run, by our wish.
    filtered: usize,
    /// The program ran to its end and called it a success.
    succeeded: bool,
    seconds: f32,
}

impl Outcome {
    /// Takes libtest's last line: `test result: ok. 6 passed; 0 failed; …`.
    fn read(&mut self, line: &str) {
        let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|it| it.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            let Some((count, what)) = count.trim().split_once(' ') else { continue };
            let Ok(count) = count.parse::<usize>() else { continue };
            match what {
                "passed" => {
                    self.passed = count;
                    self.total += count;
                }
                "failed" | "ignored" => self.total += count,
                "filtered out" => self.filtered = count,
                _ => {}
            }
        }
    }

    fn fault(&self, excluded: usize) -> Option<&'static str> {
        if !self.succeeded || self.passed < self.total {
            Some("not all tests passed")
        } else if self.passed == 0 {
            Some("it has no tests")
        } else if self.filtered != excluded {
            Some("an excluded test is not there any more")
        } else {
            None
        }
    }
}

/// Runs one test program; its output goes where ours goes.
fn test(
    file: &TestFile,
    executable: &Path,
    folder: &Path,
    server: &Server,
) -> Result<Outcome, Failure> {
    let name = file.name;
    println!("\n==> {name}");
    let begun = now();
    let mut process = Command::new(executable)
        .args(["--test-threads", &file.threads.to_string(), "--exact"])
        .args(file.excluded.iter().flat_map(|name| ["--skip", name]))
        .current_dir(folder)
        .env("LIVEKIT_URL", format!("ws://127.0.0.1:{}", server.port))
        .env("LIVEKIT_API_KEY", "devkey")
        .env("LIVEKIT_API_SECRET", "secret")
        .envs(file.log.map(|log| ("RUST_LOG", log)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| at(executable, &error))?;
    let (sender, lines) = mpsc::sync_channel(64);
    let reader = process.stdout.take().map(|output| {
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let utf8 = |error: &std::io::Error| error.kind() == ErrorKind::InvalidData;
                let line = match line {
                    Ok(line) => line,
                    Err(error) if utf8(&error) => continue,
                    Err(_) => return,
                };
                if sender.send(line).is_err() {
                    return;
                }
            }
        })
    });
    let mut outcome = Outcome::default();
    loop {
        match lines.recv_timeout(FILE_ENDS_WITHIN.saturating_sub(begun.elapsed())) {
            Ok(line) => {
                println!("{line}");
                outcome.read(&line);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                println!("{name} does not end: it is stopped");
                let _ = process.kill();
                break;
            }
        }
    }
    drop(lines);
    let status = process.wait().map_err(|error| at(executable, &error))?;
    if let Some(reader) = reader {
        let _ = reader.join();
    }
    outcome.succeeded = status.success();
    outcome.seconds = begun.elapsed().as_secs_f32();
    Ok(outcome)
}

#[allow(clippy::disallowed_methods, reason = "a build tool's wall time, shown to people")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "test result: ok. 6 passed; 0 failed; 0 ignored; 0 measured; \
                        2 filtered out; finished in 5.21s";

    #[test]
    fn the_last_line_of_a_file_is_counted() {
        let mut outcome = Outcome { succeeded: true, ..Outcome::default() };
        outcome.read("running 6 tests");
        outcome.read(LINE);
        assert_eq!((outcome.passed, outcome.total, outcome.filtered), (6, 6, 2));
        assert_eq!(outcome.fault(2), None);
    }

    #[test]
    fn a_failed_an_ignored_or_a_vanished_test_fails_the_file() {
        let read = |line: &str| {
            let mut outcome = Outcome { succeeded: true, ..Outcome::default() };
            outcome.read(line);
            outcome
        };
        assert!(read(&LINE.replace("0 failed", "1 failed")).fault(2).is_some());
        assert!(read(&LINE.replace("0 ignored", "1 ignored")).fault(2).is_some());
        assert!(read(&LINE.replace("2 filtered", "1 filtered")).fault(2).is_some());
        assert!(read(&LINE.replace("6 passed", "0 passed")).fault(2).is_some());
        assert!(read("killed half-way").fault(0).is_some());
    }

    #[test]
    fn only_the_development_profile_is_taken_over() {
        let manifest = "[package]\nname = \"a\"\n[profile.dev]\ndebug = 1\n\
                        [profile.dev.package]\na.opt-level = 3\n[profile.release]\nlto = true\n";
        let profile = "[profile.dev]\ndebug = 1\n[profile.dev.package]\na.opt-level = 3\n";
        assert_eq!(development_profile(manifest), profile);
    }
}
