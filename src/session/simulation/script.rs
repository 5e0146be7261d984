//! How a simulated call's providers behave.

use std::time::Duration;

use super::ms;

/// How the providers behave, and how they fail.
#[derive(Debug, Clone)]
pub struct Script {
    /// The detector's minima of speech and of silence.
    pub vad_min_speech: Duration,
    pub vad_min_silence: Duration,
    /// From the end of a word to the interim that holds it; none: finals only.
    pub stt_interim_delay: Option<Duration>,
    /// From the end of an utterance to its final, if nobody asks for it.
    pub stt_final_delay: Duration,
    /// From being asked for the final to the final.
    pub stt_finalize_delay: Duration,
    /// Recognition gives word times.
    pub stt_word_times: bool,
    /// Recognition tells nothing at all.
    pub stt_silent: bool,
    pub llm_first_token: Duration,
    pub llm_per_token: Duration,
    /// This many of the next generations fail before their first token.
    pub llm_failures: u32,
    /// The next generation breaks off after so many tokens.
    pub llm_dies_after: Option<usize>,
    /// The next generation stops after so many tokens and tells nothing more.
    pub llm_stalls_after: Option<usize>,
    /// After so many tokens the next answer waits for tools, for so long.
    pub llm_calls: Option<(usize, Duration)>,
    pub tts_first_audio: Duration,
    pub tts_ms_per_char: u64,
    pub tts_alignment: bool,
    /// This many of the next speeches fail before their first audio.
    pub tts_failures: u32,
    /// The next speech breaks off so long after its first audio.
    pub tts_dies_after: Option<Duration>,
    /// The next speeches give no audio and no error.
    pub tts_silent: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            vad_min_speech: ms(60),
            vad_min_silence: ms(200),
            stt_interim_delay: Some(ms(150)),
            stt_final_delay: ms(400),
            stt_finalize_delay: ms(100),
            stt_word_times: false,
            stt_silent: false,
            llm_first_token: ms(300),
            llm_per_token: ms(20),
            llm_failures: 0,
            llm_dies_after: None,
            llm_stalls_after: None,
            llm_calls: None,
            tts_first_audio: ms(200),
            tts_ms_per_char: 60,
            tts_alignment: true,
            tts_failures: 0,
            tts_dies_after: None,
            tts_silent: false,
        }
    }
}
