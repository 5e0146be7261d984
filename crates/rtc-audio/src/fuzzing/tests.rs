use std::fs;
use std::path::PathBuf;

use super::*;

/// How many mutations of its seeds a target is fed: more where one costs less.
fn mutations(target: &str) -> usize {
    match target {
        "messages" => 25,
        "datagrams" => 60,
        "sdp" => 200,
        "candidate" => 1_000,
        _ => 1_500,
    }
}

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "../../fixtures/fuzz", target].iter().collect();
    let mut seeds: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), fs::read(path).unwrap()))
        .collect();
    seeds.sort();
    assert!(seeds.len() >= 3, "{} holds too few seeds", folder.display());
    seeds
}

/// Xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// What text formats break over.
const WORDS: [&[u8]; 16] = [
    b"",
    b"\r\n",
    b"a=",
    b"m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n",
    b"0",
    b"-1",
    b"65536",
    b"4294967296",
    b"18446744073709551616",
    b":",
    b" ",
    b"\0",
    b"\xFF",
    b"::1",
    b"a=mid:0\r\n",
    b"a=ssrc:1 cname:x\r\n",
];

fn mutate(random: &mut Random, seeds: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut data = seeds[random.below(seeds.len())].1.clone();
    for _ in 0..=random.below(6) {
        let at = random.below(data.len() + 1);
        let to = at + random.below((data.len() - at).min(64) + 1);
        match random.below(7) {
            0 => {
                if let Some(byte) = data.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            1 => {
                if let Some(byte) = data.get_mut(at) {
                    *byte = random.next() as u8;
                }
            }
            2 => drop(data.drain(at..to)),
            3 => {
                let word = WORDS[random.below(WORDS.len())];
                data.splice(at..to, word.iter().copied());
            }
            4 => {
                let copy = data[at..to].to_vec();
                data.splice(at..at, copy);
            }
            5 => {
                let other = &seeds[random.below(seeds.len())].1;
                let from = random.below(other.len() + 1);
                let len = random.below((other.len() - from).min(256) + 1);
                data.splice(at..at, other[from..from + len].iter().copied());
            }
            _ => {
                // A whole line moves: the order of attributes and sections.
                let mut lines: Vec<_> = data.split_inclusive(|byte| *byte == b'\n').collect();
                let (a, b) = (random.below(lines.len()), random.below(lines.len()));
                if !lines.is_empty() {
                    lines.swap(a, b);
                }
                data = lines.concat();
            }
        }
    }
    data
}

fn replay(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(known, _)| *known == name).unwrap();
    let seeds = seeds(name);
    for (_, seed) in &seeds {
        target(seed);
    }
    let mut random = Random(0x5EED);
    for count in 0..mutations(name) {
        let input = mutate(&mut random, &seeds);
        let outcome = std::panic::catch_unwind(|| target(&input));
        assert!(
            outcome.is_ok(),
            "mutation {count} of {name}: {:?}",
            input.escape_ascii().to_string()
        );
    }
}

#[test]
fn no_description_breaks_a_peer() {
    replay("sdp");
}

#[test]
fn no_candidate_breaks_a_peer() {
    replay("candidate");
}

#[test]
fn no_packets_break_a_playout() {
    replay("rtp");
}

#[test]
fn no_datagrams_break_a_peer() {
    replay("datagrams");
}

#[test]
fn no_messages_break_a_peer() {
    replay("messages");
}

#[test]
fn no_answers_of_a_server_break_its_client() {
    replay("servers");
}

#[test]
fn a_call_without_a_hostile_input_connects_and_carries_messages() {
    // Send on channel 0 from side 0, then let time pass: the targets reach what they are to test.
    let mut link = Link::negotiated(Reader(&[]), true).unwrap();
    for _ in 0..STEPS {
        if link.connected() && link.peers[0].channels()[0].stream().is_some() {
            break;
        }
        link.step(false);
    }
    for _ in 0..20 {
        link.step(false);
    }
    let key = link.peers[0].channels()[0].key();
    link.peers[0].send_message(key, true, &[1; 5_000]).unwrap();
    for _ in 0..20 {
        link.step(false);
    }
    assert_eq!(link.messages, 1);
}
