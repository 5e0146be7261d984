//! Every provider, every fault, every moment: the whole answer, or an apology in time and a next turn
//! that works. `docs/faults.md` is this table, written down; the test holds it to what happens.

use std::fmt::Write as _;

use super::*;
use crate::doubles::{faults::Faulty, llm::LlmScript};

/// From the end of the question to the first sound of the agent, in ms: the wait for the end of the
/// turn and then at most 3 s.
const LONGEST: u64 = 500 + 3_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A fault at a moment.
struct Cell<S> {
    moment: &'static str,
    fault: &'static str,
    show: fn(S) -> S,
}

const fn cell<S>(moment: &'static str, fault: &'static str, show: fn(S) -> S) -> Cell<S> {
    Cell { moment, fault, show }
}

fn llm_cells() -> Vec<Cell<LlmScript>> {
    vec![
        cell("at connect", "refused 500", |it| it.refuse_always(500)),
        cell("at connect", "401", |it| it.refuse_always(401)),
        cell("at connect", "429 Retry-After 9", |it| it.refuse_for(429, 9)),
        cell("at connect", "slow 9 s", |it| it.slow_connect(ms(9_000))),
        cell("before first byte", "drop", |it| it.disconnect_after(0)),
        cell("before first byte", "stall", |it| it.stall_after(0)),
        cell("before first byte", "malformed", |it| it.malformed_after(0)),
        cell("before first byte", "fails", |it| it.fail_after(0)),
        cell("mid-stream", "drop", |it| it.disconnect_after(11)),
        cell("mid-stream", "stall", |it| it.stall_after(11)),
        cell("mid-stream", "malformed", |it| it.malformed_after(11)),
        cell("mid-stream", "fails", |it| it.fail_after(11)),
        cell("mid-stream", "slow drip", |it| it.drip(ms(150))),
        cell("mid-stream", "wrong order", |it| it.disorder_after(11)),
        cell("between turns", "refused 500", |it| it.accept().refuse(500).refuse(500)),
        cell("between turns", "stall", |it| it.accept().stall_after(0)),
    ]
}

fn tts_cells<S: Faulty<At = Duration>>() -> Vec<Cell<S>> {
    vec![
        cell("at connect", "refused 500", |it| it.refuse_always(500)),
        cell("at connect", "401", |it| it.refuse_always(401)),
        cell("at connect", "429 Retry-After 9", |it| it.refuse_for(429, 9).refuse_for(429, 9)),
        cell("at connect", "slow 9 s", |it| it.slow_connect(ms(9_000)).slow_connect(ms(9_000))),
        cell("before first byte", "drop", |it| it.disconnect_after(ms(0))),
        cell("before first byte", "stall", |it| it.stall_after(ms(0)).stall_after(ms(0))),
        cell("before first byte", "dead", |it| it.dead_after(ms(0))),
        cell("before first byte", "malformed", |it| it.malformed_after(ms(0))),
        cell("before first byte", "fails", |it| it.fail_after(ms(0))),
        cell("mid-stream", "drop", |it| it.disconnect_after(ms(1_500))),
        cell("mid-stream", "stall", |it| it.stall_after(ms(1_500))),
        cell("mid-stream", "dead", |it| it.dead_after(ms(1_500))),
        cell("mid-stream", "malformed", |it| it.malformed_after(ms(1_500))),
        cell("mid-stream", "fails", |it| it.fail_after(ms(1_500))),
        cell("mid-stream", "slow drip", |it| it.drip(ms(20))),
        cell("mid-stream", "wrong order", |it| it.disorder_after(ms(1_500))),
        cell("between turns", "drop", |it| it.sound().disconnect_after(ms(0))),
    ]
}

/// A recogniser that is sent speech alone hears its second utterance from about 3.5 s on.
fn speech_cells<S: Faulty<At = Duration>>() -> Vec<Cell<S>> {
    let mut cells: Vec<Cell<S>> = stt_cells();
    cells.truncate(cells.len() - 2);
    cells.push(cell("between turns", "drop", |it| it.disconnect_after(ms(3_300))));
    cells.push(cell("between turns", "stall", |it| it.stall_after(ms(3_300))));
    cells
}

fn stt_cells<S: Faulty<At = Duration>>() -> Vec<Cell<S>> {
    vec![
        cell("at connect", "refused 500", |it| it.refuse(500)),
        cell("at connect", "401", |it| it.refuse_always(401)),
        cell("at connect", "429 Retry-After 9", |it| it.refuse_for(429, 9)),
        cell("at connect", "slow 9 s", |it| it.slow_connect(ms(9_000))),
        cell("before first byte", "drop", |it| it.disconnect_after(ms(300))),
        cell("before first byte", "stall", |it| it.stall_after(ms(300))),
        cell("mid-stream", "drop", |it| it.disconnect_after(ms(2_600))),
        cell("mid-stream", "stall", |it| it.stall_after(ms(2_600))),
        cell("mid-stream", "malformed", |it| it.malformed_after(ms(2_600))),
        cell("mid-stream", "fails", |it| it.fail_after(ms(2_600))),
        cell("mid-stream", "slow drip", |it| it.drip(ms(200))),
        cell("between turns", "drop", |it| it.disconnect_after(ms(9_000))),
        cell("between turns", "stall", |it| it.stall_after(ms(9_000))),
    ]
}

fn sound() -> Script {
    let mut script = Script::new([QUESTION, NEXT_QUESTION], []);
    // Whoever is asked gives the answer to what was asked.
    for llm in [&mut script.llm, &mut script.anthropic, &mut script.gemini] {
        *llm = llm.clone().answer_to("saturday", ANSWER).answer_to("park", NEXT_ANSWER);
    }
    script
}

/// What came of a cell, for the page.
struct Row {
    line: String,
    faults: Vec<String>,
}

/// The provider whose faults are shown, and the agent that uses it.
#[derive(Clone, Copy)]
struct Primary {
    name: &'static str,
    agent: &'static str,
}

const DEEPGRAM: Primary = Primary { name: "deepgram", agent: "" };
const FLUX: Primary = Primary { name: "flux", agent: "[stt]\nmodel = \"flux-general-en\"\n" };
const ASSEMBLYAI: Primary =
    Primary { name: "assemblyai", agent: "[stt]\nprovider = \"assemblyai\"\n" };
const GOOGLE_SPEECH: Primary =
    Primary { name: "google speech", agent: "[stt]\nprovider = \"google\"\n" };
const REALTIME: Primary = Primary {
    name: "openai-realtime",
    agent: "[stt]\nprovider = \"openai-realtime\"\nmodel = \"gpt-realtime-whisper\"\n",
};
const OPENAI: Primary = Primary { name: "openai", agent: "" };
const ANTHROPIC: Primary =
    Primary { name: "anthropic", agent: "[llm]\nprovider = \"anthropic\"\n" };
const GOOGLE: Primary = Primary { name: "google", agent: "[llm]\nprovider = \"google\"\n" };
const ELEVENLABS: Primary = Primary { name: "elevenlabs", agent: "" };
const OPENAI_VOICE: Primary =
    Primary { name: "openai voice", agent: "[voice]\nprovider = \"openai\"\n" };

async fn judge(primary: Primary, moment: &str, fault: &str, behind: bool, script: Script) -> Row {
    let provider = primary.name;
    let alone = if primary.agent.contains("[llm]") { "" } else { ALONE };
    let others = if behind { BEHIND } else { "" };
    let text = format!("{alone}{}{others}", primary.agent);
    let call = call(&agent(&text), script).await;
    let mut faults = Vec::new();
    let name =
        format!("{provider}, {fault} {moment}, {}", if behind { "others behind" } else { "alone" });
    let mut wrong = |what: &str| faults.push(format!("{name}: {what}\n{call:#?}"));
    let agent_said = call.said(SpeakerKind::Agent).join(" ");
    let user_said = call.said(SpeakerKind::User);
    let is_whole = |answer: &str| agent_said.contains(answer);
    let (first, next) = (is_whole(ANSWER), is_whole(NEXT_ANSWER));
    let apologised = call.apologies > 0;
    let heard = match (first && next, apologised) {
        (true, false) => "both answers whole",
        (true, true) => "an apology, and both answers whole",
        (false, true) => "an apology",
        (false, false) => {
            wrong("neither an answer nor an apology");
            "silence"
        }
    };
    let slowest = call.silences.iter().copied().max().flatten();
    if call.silences.iter().any(|silence| silence.is_none_or(|ms| ms > LONGEST)) {
        wrong("a turn was silent for too long");
    }
    // What the history and the transcripts say: each user turn once, each answer at most once.
    for question in [QUESTION, NEXT_QUESTION] {
        let times = user_said.iter().filter(|said| said.contains(question)).count();
        if times > 1 {
            wrong("a question was understood twice");
        }
    }
    for answer in [ANSWER, NEXT_ANSWER] {
        if agent_said.matches(answer).count() > 1 {
            wrong("an answer was said twice");
        }
    }
    if behind && !(first && next) {
        wrong("others were there to answer");
    }
    let mut line = String::new();
    let _ = write!(
        line,
        "| {provider} | {moment} | {fault} | {} | {heard} | {} |",
        if behind { "yes" } else { "no" },
        slowest.map_or_else(|| "-".into(), |ms| format!("{:.1} s", ms as f64 / 1_000.0)),
    );
    Row { line, faults }
}

/// All cells of one primary; `put` places the faulty script.
async fn cells<S: Clone>(
    primary: Primary,
    behind: bool,
    cells: Vec<Cell<S>>,
    of: fn(&mut Script) -> &mut S,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for Cell { moment, fault, show } in cells {
        let mut script = sound();
        let faulty = show(of(&mut script).clone());
        *of(&mut script) = faulty;
        rows.push(judge(primary, moment, fault, behind, script).await);
    }
    rows
}

fn report(rows: &[Row]) {
    let page = std::fs::read_to_string("docs/faults.md").unwrap();
    let mut faults: Vec<String> = rows.iter().flat_map(|row| row.faults.clone()).collect();
    for row in rows {
        println!("{}", row.line);
        // Times differ a little from run to run.
        let (without_time, _) = row.line.trim_end_matches(" |").rsplit_once("| ").unwrap();
        if !page.contains(without_time) {
            faults.push(format!("docs/faults.md says otherwise: {}", row.line));
        }
    }
    assert!(faults.is_empty(), "{} of {} cells:\n{}", faults.len(), rows.len(), faults.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn recognisers_alone_are_never_met_with_silence() {
    let mut rows = cells(DEEPGRAM, false, stt_cells(), |it| &mut it.stt).await;
    rows.extend(cells(FLUX, false, stt_cells(), |it| &mut it.flux).await);
    rows.extend(cells(ASSEMBLYAI, false, stt_cells(), |it| &mut it.assemblyai).await);
    rows.extend(cells(GOOGLE_SPEECH, false, stt_cells(), |it| &mut it.google_speech).await);
    rows.extend(cells(REALTIME, false, speech_cells(), |it| &mut it.realtime).await);
    report(&rows);
}

#[tokio::test(start_paused = true)]
async fn models_alone_are_never_met_with_silence() {
    let mut rows = cells(OPENAI, false, llm_cells(), |it| &mut it.llm).await;
    rows.extend(cells(ANTHROPIC, false, llm_cells(), |it| &mut it.anthropic).await);
    rows.extend(cells(GOOGLE, false, llm_cells(), |it| &mut it.gemini).await);
    report(&rows);
}

#[tokio::test(start_paused = true)]
async fn voices_alone_are_never_met_with_silence() {
    let mut rows = cells(ELEVENLABS, false, tts_cells(), |it| &mut it.tts).await;
    rows.extend(cells(OPENAI_VOICE, false, tts_cells(), |it| &mut it.speech).await);
    report(&rows);
}

#[tokio::test(start_paused = true)]
async fn with_others_behind_every_answer_is_whole() {
    let mut rows = cells(DEEPGRAM, true, stt_cells(), |it| &mut it.stt).await;
    rows.extend(cells(OPENAI, true, llm_cells(), |it| &mut it.llm).await);
    rows.extend(cells(ELEVENLABS, true, tts_cells(), |it| &mut it.tts).await);
    report(&rows);
}
