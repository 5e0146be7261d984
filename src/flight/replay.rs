//! A flight flown again: the same inputs at the same times into a new machine.

use std::{path::Path, time::Duration};

pub use super::file::{FlightError, read};
use super::{Checksum, End, Header, Step};
use crate::session::{command::Command, machine::Session};

/// What came of it.
#[derive(Debug)]
pub struct Flown {
    pub header: Header,
    /// Every command with its time since the session began.
    pub commands: Vec<(Duration, Command)>,
    pub steps: usize,
    /// When the machine first commanded something else than was recorded; none: never.
    pub diverged: Option<Divergence>,
    /// How the recording ends; none: it breaks off.
    pub end: Option<End>,
}

/// Where a replay went another way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Divergence {
    /// Number of the step before which the difference arose, from 1.
    pub step: usize,
    pub at: Duration,
}

/// Reads a flight and flies it again.
///
/// # Errors
/// When it cannot be read.
pub fn fly(path: &Path, until: Option<Duration>) -> Result<Flown, FlightError> {
    let (header, steps) = read(path)?;
    Ok(replay(header, &steps, until))
}

/// Gives the steps, up to `until` after the session's beginning, to a new machine.
pub fn replay(header: Header, steps: &[Step], until: Option<Duration>) -> Flown {
    let began = crate::clock::now();
    let mut session = Session::new(header.settings.clone(), header.ids.clone(), began);
    let mut commands = Vec::new();
    let mut sum = Checksum::new(header.redacted);
    let mut unchecked = 0;
    let mut flown = 0;
    let mut diverged = None;
    let mut end = None;
    for (n, step) in steps.iter().enumerate() {
        if until.is_some_and(|until| step.at() > until) {
            break;
        }
        // The recorded count is of the commands that had been carried out by then.
        while sum.count < step.commands && unchecked < commands.len() {
            let (_, command): &(Duration, Command) = &commands[unchecked];
            sum.add(command);
            unchecked += 1;
        }
        if diverged.is_none() && (sum.count, sum.sum()) != (step.commands, step.checksum) {
            diverged = Some(Divergence { step: n + 1, at: step.at() });
        }
        flown = n + 1;
        end = step.end;
        if end.is_some() {
            break;
        }
        let now = began + step.at();
        match &step.input {
            Some(input) => session.handle_input(input.clone(), now),
            None => session.handle_timeout(now),
        }
        while let Some(command) = session.poll_command() {
            commands.push((step.at(), command));
        }
    }
    if diverged.is_none() && end == Some(End::Over) && unchecked < commands.len() {
        let at = steps.last().map_or(Duration::ZERO, Step::at);
        diverged = Some(Divergence { step: flown, at });
    }
    Flown { header, commands, steps: flown, diverged, end }
}

/// The lines in which two lists of commands differ: those of `ours` with `+`, of `theirs` with `-`,
/// and how many equal ones lie between.
pub fn diff(theirs: &[String], ours: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    let (mut a, mut b, mut same) = (0, 0, 0_usize);
    while a < theirs.len() || b < ours.len() {
        if theirs.get(a) == ours.get(b) {
            (a, b, same) = (a + 1, b + 1, same + 1);
            continue;
        }
        if same > 0 {
            out.push(format!("  {same} equal"));
            same = 0;
        }
        // The nearest place where they meet again.
        let meet = (1..=LOOK_AHEAD).find_map(|sum| {
            (0..=sum)
                .map(|skip| (skip, sum - skip))
                .find(|(i, j)| theirs.get(a + i).is_some_and(|line| Some(line) == ours.get(b + j)))
        });
        let (i, j) =
            meet.unwrap_or((theirs.len() - a.min(theirs.len()), ours.len() - b.min(ours.len())));
        out.extend(theirs.iter().skip(a).take(i).map(|line| format!("- {line}")));
        out.extend(ours.iter().skip(b).take(j).map(|line| format!("+ {line}")));
        (a, b) = (a + i, b + j);
    }
    if same > 0 {
        out.push(format!("  {same} equal"));
    }
    out
}

/// How many lines may be missing or new at one place.
const LOOK_AHEAD: usize = 200;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        flight::{FlightConfig, Recorded},
        session::{
            input::{GenerationId, Input, ParticipantEvent, SpeakerId, SttInput, VadEvent},
            machine::SessionIds,
            settings::Settings,
            state::CloseReason,
        },
        stt::Transcript,
    };

    const SPEAKER: SpeakerId = SpeakerId(1);

    fn lines(of: &[&str]) -> Vec<String> {
        of.iter().map(|line| (*line).to_owned()).collect()
    }

    /// A short call, recorded; the commands that came of it and the file.
    async fn recorded(
        dir: &Path,
        redacted: bool,
        max_bytes: u64,
        turns: usize,
    ) -> (Vec<Command>, std::path::PathBuf) {
        let config = Arc::new(FlightConfig { dir: dir.to_owned(), redacted, max_bytes });
        let ids = SessionIds {
            prefix: "flight".into(),
            agent_identity: "agent".into(),
            agent_name: "Agent".into(),
        };
        let mut now = crate::clock::now();
        let settings =
            Settings { greeting: Some("Hello Mister Kowalski".into()), ..Settings::default() };
        let mut session = Recorded::new(settings, ids, Some(&config), now);
        let mut commands = Vec::new();
        let mut give = |input: Option<Input>, after_ms: u64, session: &mut Recorded| {
            now += Duration::from_micros(after_ms * 1_000 + 17);
            match input {
                Some(input) => session.handle_input(input, now),
                None => session.handle_timeout(now),
            }
            while let Some(command) = session.poll_command() {
                commands.push(command);
            }
        };
        let event = ParticipantEvent::Joined { identity: "anna".into(), name: "Anna".into() };
        give(Some(Input::Participant { speaker: SPEAKER, event }), 0, &mut session);
        for n in 0..turns {
            let event = VadEvent::Started { speech_ms: 60 };
            give(Some(Input::Vad { speaker: SPEAKER, event }), 500, &mut session);
            let event = VadEvent::Ended { silence_ms: 200 };
            give(Some(Input::Vad { speaker: SPEAKER, event }), 900, &mut session);
            let text = format!("My name is Kowalski {n} and I live in Vienna, number four.");
            let heard = Transcript { text, confidence: 0.9, ..Transcript::default() };
            let event = SttInput::Final(heard);
            give(Some(Input::Stt { speaker: SPEAKER, event }), 100, &mut session);
            give(None, 1_500, &mut session);
            let event = crate::llm::LlmEvent::Error(crate::llm::LlmError::Timeout(5));
            let id = GenerationId(n as u64 + 1);
            give(Some(Input::Llm { id, event }), 10, &mut session);
            let heard = Transcript { text: "never mind all that".into(), ..Transcript::default() };
            let event = SttInput::Interim(heard);
            give(Some(Input::Stt { speaker: SPEAKER, event }), 100, &mut session);
        }
        let reason = CloseReason::InputEnded;
        give(Some(Input::Close { reason }), 10, &mut session);
        let writer = session.end(now).expect("a recorded session");
        writer.await.expect("a written flight");
        let path = dir.join("flight.flight");
        (commands, path)
    }

    #[tokio::test]
    async fn a_recorded_call_gives_the_same_commands_again() {
        let dir = tempfile::tempdir().unwrap();
        let (commands, path) = recorded(dir.path(), false, 1 << 20, 5).await;
        let flown = fly(&path, None).unwrap();
        let again: Vec<_> = flown.commands.iter().map(|(_, command)| command.clone()).collect();
        assert_eq!(again, commands);
        assert_eq!((flown.diverged, flown.end), (None, Some(End::Over)));
        let early = fly(&path, Some(Duration::from_secs(1))).unwrap();
        assert!(early.commands.len() < commands.len() && early.diverged.is_none());
    }

    #[tokio::test]
    async fn another_machine_is_noticed_at_the_step_where_it_differs() {
        let dir = tempfile::tempdir().unwrap();
        let (_, path) = recorded(dir.path(), false, 1 << 20, 3).await;
        let (mut header, steps) = read(&path).unwrap();
        header.settings.silence_threshold = Duration::from_millis(2_900);
        header.settings.confident_endpointing = Duration::from_millis(2_900);
        let flown = replay(header, &steps, None);
        assert!(flown.diverged.is_some_and(|at| at.at > Duration::from_secs(1)), "{flown:?}");
    }

    #[tokio::test]
    async fn a_redacted_flight_holds_no_words_and_keeps_its_shape() {
        let dir = tempfile::tempdir().unwrap();
        let (commands, path) = recorded(dir.path(), true, 1 << 20, 3).await;
        let (header, steps) = read(&path).unwrap();
        let text = format!("{header:?} {steps:?}");
        for secret in ["Kowalski", "Vienna", "anna", "Anna"] {
            assert!(!text.contains(secret), "{secret}");
        }
        let flown = replay(header, &steps, None);
        assert_eq!(flown.commands.len(), commands.len());
        assert_eq!(flown.diverged, None);
    }

    #[tokio::test]
    async fn a_full_flight_says_so_and_is_replayed_to_there() {
        let dir = tempfile::tempdir().unwrap();
        let (_, path) = recorded(dir.path(), false, 400, 400).await;
        let flown = fly(&path, None).unwrap();
        assert_eq!((flown.diverged, flown.end), (None, Some(End::Full)));
        assert!(std::fs::metadata(&path).unwrap().len() < 64 * 1024);
    }

    #[tokio::test]
    async fn a_flight_that_breaks_off_is_read_as_far_as_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (_, path) = recorded(dir.path(), false, 1 << 20, 40).await;
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() * 3 / 4]).unwrap();
        let flown = fly(&path, None).unwrap();
        assert!(flown.steps > 10 && flown.diverged.is_none() && flown.end.is_none());
        std::fs::write(&path, b"RIFF").unwrap();
        assert!(matches!(read(&path), Err(FlightError::Malformed(..))));
    }

    #[test]
    fn a_difference_shows_what_is_new_and_what_is_missing() {
        let theirs = lines(&["a", "b", "c", "d"]);
        let ours = lines(&["a", "x", "c", "d", "e"]);
        assert_eq!(diff(&theirs, &ours), ["  1 equal", "- b", "+ x", "  2 equal", "+ e"]);
        assert_eq!(diff(&ours, &ours), ["  5 equal"]);
    }
}
