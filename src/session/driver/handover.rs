//! Another agent of the session goes on: with its own model, tools and, where it fits, voice.

use std::time::Instant;

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{Driver, LINKS, QUEUE};
use crate::{
    session::{command::Usage, input::Input, ports::Shown},
    tts::{TtsConnection, TtsEvent},
};

impl Driver {
    pub(super) fn hand_over(&mut self, to: &str, keeps_history: bool, now: Instant) {
        let found = self.colleagues.iter().zip(1_u8..).find(|(colleague, _)| colleague.name == to);
        let (Some((colleague, number)), Some(speaking)) = (found, &mut self.speaking) else {
            warn!(to, "there is nobody of this name to hand over to");
            return;
        };
        info!(to, "the conversation is handed over");
        let link = number * LINKS;
        speaking.llm = colleague.llm.clone();
        speaking.llm_link = link;
        // The track keeps its sample rate: a voice of another one cannot be heard on it.
        if colleague.tts.sample_rate() == speaking.tts_rate {
            let (sender, events) = mpsc::channel(QUEUE);
            let TtsConnection { commands, task } = colleague.tts.connect(sender);
            speaking.voice = colleague.tts.clone();
            let earlier_link = std::mem::replace(&mut speaking.tts_link, link);
            speaking.tts = commands;
            // The earlier connection ends by itself: nobody gives it anything to say.
            speaking.tasks[0] = task;
            if let Some(mut earlier) = speaking.tts_events.replace(events) {
                let shown = self.shown.clone();
                tokio::spawn(async move {
                    while let Some(event) = earlier.recv().await {
                        if let TtsEvent::Usage { link, characters } = event {
                            let usage = Usage::Tts { link, characters };
                            let _ =
                                shown.send(Shown::Usage(usage.counted_from(earlier_link))).await;
                        }
                    }
                });
            }
        } else {
            warn!(to, "its voice has another sample rate: the one before speaks on");
        }
        let input = Input::HandOver {
            settings: Box::new(colleague.settings.clone()),
            agent_name: colleague.name.clone(),
            keeps_history,
        };
        self.session.handle_input(input, now);
        self.stay_warm();
    }
}
