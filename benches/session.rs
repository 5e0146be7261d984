//! Inputs a second that the conversation machine takes in, commands drained. Target: 1,000,000 on
//! one core, so that hundreds of rooms cost next to nothing.

use std::time::{Duration, Instant};

use antiphon::{
    clock,
    llm::LlmEvent,
    session::{
        command::Command,
        input::{
            GenerationId, Input, ParticipantEvent, PlayoutEvent, SpeakerId, SttInput, TtsInput,
            VadEvent,
        },
        machine::{Session, SessionIds},
        settings::Settings,
    },
    stt::Transcript,
    tts::{SpeechId, TimedText},
};
use divan::{Bencher, counter::ItemsCount};

const CALLER: SpeakerId = SpeakerId(1);
const TURNS: u64 = 20;
const WORDS: usize = 12;
const TOKENS: usize = 40;
const REPORTS: u64 = 60;

/// `max alloc` is what a session of [`TURNS`] turns holds at most.
#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

/// One session, its clock, and the ids that its commands gave out last.
struct Room {
    session: Session,
    now: Instant,
    generation: GenerationId,
    speech: SpeechId,
    inputs: u64,
}

impl Room {
    fn new() -> Self {
        let now = clock::now();
        let ids = SessionIds {
            prefix: "bench".into(),
            agent_identity: "agent".into(),
            agent_name: "Agent".into(),
        };
        let session = Session::new(Settings::default(), ids, now);
        let mut room =
            Self { session, now, generation: GenerationId(0), speech: SpeechId(0), inputs: 0 };
        let event = ParticipantEvent::Joined { identity: "caller".into(), name: "Caller".into() };
        room.give(Input::Participant { speaker: CALLER, event });
        room.give(Input::Ready);
        room
    }

    fn give(&mut self, input: Input) {
        self.session.handle_input(input, self.now);
        self.inputs += 1;
        self.drain();
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        while self.session.poll_timeout().is_some_and(|at| at <= self.now) {
            self.session.handle_timeout(self.now);
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(command) = self.session.poll_command() {
            match command {
                Command::Generate { id, .. } => self.generation = id,
                Command::Speak { id, .. } => self.speech = id,
                other => drop(divan::black_box(other)),
            }
        }
    }

    /// A user's turn of 12 words and the agent's answer of 40, as providers tell them.
    fn turn(&mut self) {
        self.give(Input::Vad { speaker: CALLER, event: VadEvent::Started { speech_ms: 60 } });
        let mut text = String::new();
        for _ in 0..WORDS {
            self.pass(250);
            text.push_str("word ");
            let heard = Transcript { text: text.clone(), ..Transcript::default() };
            self.give(Input::Stt { speaker: CALLER, event: SttInput::Interim(heard) });
        }
        self.give(Input::Vad { speaker: CALLER, event: VadEvent::Ended { silence_ms: 200 } });
        self.pass(100);
        let heard = Transcript { text, ..Transcript::default() };
        self.give(Input::Stt { speaker: CALLER, event: SttInput::Final(heard) });
        self.pass(600);
        for _ in 0..TOKENS {
            let event = LlmEvent::Text("token ".into());
            self.give(Input::Llm { id: self.generation, event });
        }
        self.give(Input::Llm { id: self.generation, event: LlmEvent::End });
        let id = self.speech;
        for n in 0..TOKENS as u64 {
            self.give(Input::Tts { id, event: TtsInput::Audio { ms: 150 } });
            let word =
                TimedText { text: "token ".into(), start_ms: n * 150, end_ms: (n + 1) * 150 };
            self.give(Input::Tts { id, event: TtsInput::Alignment(vec![word]) });
        }
        self.give(Input::Tts { id, event: TtsInput::End });
        self.give(Input::Playout { id, event: PlayoutEvent::Started });
        for n in 1..=REPORTS {
            self.pass(100);
            self.give(Input::Playout { id, event: PlayoutEvent::Position { ms: n * 100 } });
        }
        self.give(Input::Playout { id, event: PlayoutEvent::Drained { ms: REPORTS * 100 } });
    }
}

fn whole_call() -> Room {
    let mut room = Room::new();
    for _ in 0..TURNS {
        room.turn();
    }
    room
}

/// Twenty turns with everything that providers and playout tell about them.
#[divan::bench]
fn calls(bencher: Bencher) {
    let inputs = whole_call().inputs;
    bencher.counter(ItemsCount::new(inputs)).bench(|| whole_call().inputs);
}
