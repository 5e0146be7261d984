use std::{fs::OpenOptions, path::PathBuf};

use super::{
    file::{COMPACT, WINDOW},
    *,
};

const CAP: u64 = 1 << 20;

async fn open(directory: &tempfile::TempDir) -> Outbox {
    Outbox::open(directory.path(), CAP).await.unwrap()
}

async fn texts(file: &OutboxFile, max: usize) -> Vec<String> {
    let batch = file.unacknowledged(max).await.unwrap();
    batch.records.into_iter().map(|record| String::from_utf8(record).unwrap()).collect()
}

/// Lets go of the lock, as the kernel does after kill -9.
async fn die(file: OutboxFile) {
    // The task that wrote may not have ended yet.
    while file.holders() > 1 {
        tokio::task::yield_now().await;
    }
}

fn files(directory: &tempfile::TempDir) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(directory.path().join("outbox"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
}

#[tokio::test]
async fn records_come_back_in_order_until_they_are_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory).await.create();
    for record in ["one", "two", "three"] {
        file.append(record.as_bytes()).await.unwrap();
    }
    assert_eq!(texts(&file, 2).await, ["one", "two"]);
    let batch = file.unacknowledged(2).await.unwrap();
    file.acknowledge(&batch).await.unwrap();
    assert_eq!(texts(&file, 9).await, ["three"]);
    let batch = file.unacknowledged(9).await.unwrap();
    file.acknowledge(&batch).await.unwrap();
    assert!(!file.has_unacknowledged());
    assert!(file.unacknowledged(9).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_dead_process_left_is_adopted_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory).await.create();
    file.append(b"one").await.unwrap();
    file.append(b"two").await.unwrap();
    die(file).await;

    let adopted = open(&directory).await.adopt().await.unwrap();
    assert_eq!(adopted.len(), 1);
    assert_eq!(texts(&adopted[0], 9).await, ["one", "two"]);
    adopted[0].remove().await.unwrap();
    assert!(files(&directory).is_empty());
}

#[tokio::test]
async fn the_file_of_a_living_writer_is_nobody_elses() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory).await.create();
    file.append(b"one").await.unwrap();
    assert!(open(&directory).await.adopt().await.unwrap().is_empty());
    assert_eq!(texts(&file, 9).await, ["one"], "and it is still there");
}

#[tokio::test]
async fn a_torn_last_record_is_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory).await.create();
    file.append(b"one").await.unwrap();
    file.append(b"two").await.unwrap();
    die(file).await;
    let path = files(&directory).remove(0);
    let length = fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 2).unwrap();

    let adopted = open(&directory).await.adopt().await.unwrap().remove(0);
    let batch = adopted.unacknowledged(9).await.unwrap();
    assert_eq!(batch.records, [b"one"]);
    adopted.acknowledge(&batch).await.unwrap();
    assert!(!adopted.has_unacknowledged(), "the torn end does not hold it up");
}

#[tokio::test]
async fn a_file_of_garbage_is_handed_out_as_corrupt_and_comes_to_an_end() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = open(&directory).await;
    let path = directory.path().join("outbox/0-garbage.jsonl");
    fs::write(path, vec![b'x'; 3 * WINDOW as usize / 2]).unwrap();
    let adopted = outbox.adopt().await.unwrap().remove(0);
    let mut rounds = 0;
    while adopted.has_unacknowledged() {
        let batch = adopted.unacknowledged(9).await.unwrap();
        assert!(batch.records.is_empty());
        adopted.acknowledge(&batch).await.unwrap();
        rounds += 1;
        assert!(rounds < 5);
    }
}

#[tokio::test]
async fn appends_that_wait_together_are_all_written() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory).await.create();
    let appends = (0..50).map(|number| {
        let file = file.clone();
        async move { file.append(format!("{number:02}").as_bytes()).await.unwrap() }
    });
    futures_util::future::join_all(appends).await;
    let expected: Vec<_> = (0..50).map(|number| format!("{number:02}")).collect();
    assert_eq!(texts(&file, 100).await, expected);
}

#[tokio::test]
async fn beyond_the_cap_an_append_fails_and_what_is_there_stays() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(directory.path(), 100).await.unwrap();
    let file = outbox.create();
    file.append(&[b'a'; 60]).await.unwrap();
    let error = file.append(&[b'b'; 60]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(texts(&file, 9).await, ["a".repeat(60)]);

    // Room again once another file has gone.
    let batch = file.unacknowledged(9).await.unwrap();
    file.acknowledge(&batch).await.unwrap();
    file.remove().await.unwrap();
    let next = outbox.create();
    next.append(&[b'c'; 60]).await.unwrap();
    assert_eq!(texts(&next, 9).await, ["c".repeat(60)]);
}

#[tokio::test]
async fn a_long_session_does_not_grow_what_is_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory).await.create();
    for _ in 0..40 {
        file.append(&vec![b'x'; 100_000]).await.unwrap();
        let batch = file.unacknowledged(9).await.unwrap();
        assert_eq!(batch.records.len(), 1);
        file.acknowledge(&batch).await.unwrap();
    }
    let length = fs::metadata(files(&directory).remove(0)).unwrap().len();
    assert!(length < 2 * COMPACT, "{length}");
}

#[tokio::test]
async fn rejected_records_are_kept_beside_and_never_adopted() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory).await.create();
    file.append(b"poison").await.unwrap();
    file.reject(vec![b"poison".to_vec()]).await.unwrap();
    file.remove().await.unwrap();
    drop(file);
    let left = files(&directory);
    assert_eq!(left.len(), 1);
    assert_eq!(fs::read_to_string(&left[0]).unwrap(), "poison\n");
    assert!(open(&directory).await.adopt().await.unwrap().is_empty());
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_may_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory).await.create();
    file.append(b"one").await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory.path().join("outbox")), 0o700);
    assert_eq!(mode(&files(&directory)[0]), 0o600);
}
