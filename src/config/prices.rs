//! What providers ask for: `prices.toml`, compiled in, and a file of the operator's own before it.

use std::{path::Path, sync::Arc};

use super::{
    error::{ConfigErrors, Fault, Origin},
    names,
    reader::{self, Document, Reader},
    source::SourceFile,
};
use crate::session::command::Usage;

/// Rows of one file.
const MAX_PRICES: usize = 1_000;

/// What one model of one provider costs, in US dollars.
#[derive(Debug, Clone, PartialEq)]
pub struct Price {
    pub provider: String,
    /// May end in `*`.
    pub model: String,
    /// A million tokens of the prompt.
    pub input: Option<f64>,
    /// A million tokens read from the provider's cache; as `input` where it is not said.
    pub cached: Option<f64>,
    /// A million tokens of the answer.
    pub output: Option<f64>,
    /// A thousand characters to be spoken.
    pub characters: Option<f64>,
    /// A minute of audio to be transcribed.
    pub minute: Option<f64>,
    /// When it was read, and where.
    pub date: String,
    pub source: String,
}

impl Price {
    /// How many bytes of the model's name match; `None`: another model.
    fn matches(&self, provider: &str, model: &str) -> Option<usize> {
        if self.provider != provider {
            return None;
        }
        match self.model.strip_suffix('*') {
            Some(start) => model.starts_with(start).then_some(start.len()),
            // Nothing can match better than the whole name.
            None => (self.model == model).then_some(usize::MAX),
        }
    }

    /// What a use costs, in billionths of a dollar; `None`: this price is of something else.
    fn of(&self, usage: Usage) -> Option<u64> {
        // A price for a million is thousandths of a billionth for each, and so on.
        let nano = match usage {
            Usage::Llm { input_tokens, cached_tokens, output_tokens, .. } => {
                let (input, output) = (self.input?, self.output?);
                let cached = self.cached.unwrap_or(input);
                let fresh = input_tokens.saturating_sub(cached_tokens) as f64;
                let cached_tokens = cached_tokens.min(input_tokens) as f64;
                (fresh * input + cached_tokens * cached + output_tokens as f64 * output) * 1e3
            }
            Usage::Tts { characters, .. } => characters as f64 * self.characters? * 1e6,
            Usage::Stt { audio_ms, .. } => audio_ms as f64 * self.minute? * 1e9 / 60_000.0,
        };
        Some(nano.round() as u64)
    }
}

/// All prices that are known. Clones share them.
#[derive(Debug, Clone)]
pub struct Prices {
    /// The operator's own.
    own: Arc<[Price]>,
    listed: Arc<[Price]>,
}

impl Default for Prices {
    /// Those compiled in.
    fn default() -> Self {
        let file = SourceFile::new("built-in prices.toml", include_str!("../../prices.toml"));
        // A test reads it: there is no fault in it.
        let listed = read(&file).unwrap_or_default().into();
        Self { own: Arc::default(), listed }
    }
}

impl Prices {
    /// Those of a file come first.
    ///
    /// # Errors
    /// Every fault of the file.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigErrors> {
        let Some(path) = path else { return Ok(Self::default()) };
        let file = SourceFile::read(path).map_err(|problem| {
            let origin = Origin::Path(path.display().to_string());
            let mut errors = ConfigErrors::default();
            errors.push(Fault::new(names::PRICES.env, origin, problem));
            errors
        })?;
        Ok(Self { own: read(&file)?.into(), ..Self::default() })
    }

    /// What a use costs, in billionths of a US dollar; `None` where no price is known.
    pub fn cost(&self, provider: &str, model: &str, usage: Usage) -> Option<u64> {
        let best = |prices: &[Price]| {
            let fitting = prices
                .iter()
                .filter_map(|price| Some((price.matches(provider, model)?, price.of(usage)?)));
            fitting.max_by_key(|(matched, _)| *matched).map(|(_, cost)| cost)
        };
        best(&self.own).or_else(|| best(&self.listed))
    }
}

fn read(file: &SourceFile) -> Result<Vec<Price>, ConfigErrors> {
    let mut errors = ConfigErrors::default();
    let (table, faults) = reader::parse(file);
    if !faults.is_empty() {
        errors.extend(faults);
        return Err(errors);
    }
    let document = Document::new(file);
    let root = document.root(table.get_ref());
    let prices = root.tables("price", MAX_PRICES).iter().filter_map(read_one).collect();
    root.finish(|_| None);
    drop(root);
    errors.extend(document.into_faults());
    errors.or(prices)
}

fn read_one(table: &Reader<'_>) -> Option<Price> {
    let text = |key: &'static str| {
        let text = table.text(key);
        if text.is_none() {
            let problem = "is missing: who asks for the price, and for what";
            table.push(table.fault(key, 0..0, problem));
        }
        text
    };
    // As written, although it was read in single precision.
    let dollars = |key| {
        let price = f64::from(table.float(key, 0.0..=100_000.0)?);
        Some((price * 1e6).round() / 1e6)
    };
    let (provider, model) = (text("provider"), text("model"));
    let [input, cached, output] = ["input", "cached", "output"].map(dollars);
    let [characters, minute] = ["characters", "minute"].map(dollars);
    let [date, source] = ["date", "source"].map(|key| table.text(key).unwrap_or_default());
    table.finish(|_| None);
    let (provider, model) = (provider?, model?);
    Some(Price { provider, model, input, cached, output, characters, minute, date, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn answer(input_tokens: u64, cached_tokens: u64, output_tokens: u64) -> Usage {
        Usage::Llm { link: 0, input_tokens, cached_tokens, output_tokens, estimated: false }
    }

    #[test]
    fn the_prices_compiled_in_are_whole_and_say_where_they_are_from() {
        let prices = Prices::default();
        assert!(prices.listed.len() > 20);
        for price in prices.listed.iter() {
            let is_llm = price.input.is_some() && price.output.is_some();
            assert!(is_llm || price.characters.is_some() || price.minute.is_some(), "{price:?}");
            assert!(price.date.len() == 10 && price.source.starts_with("https://"), "{price:?}");
        }
    }

    #[test]
    fn what_agents_use_unless_they_say_otherwise_has_a_price() {
        let prices = Prices::default();
        let (spoken, heard) =
            (Usage::Tts { link: 0, characters: 1 }, Usage::Stt { link: 0, audio_ms: 60_000 });
        for (provider, model, usage) in [
            ("anthropic", "claude-sonnet-4-20250514", answer(1, 0, 1)),
            ("openai", "gpt-4o-mini", answer(1, 0, 1)),
            ("google", "gemini-2.5-flash", answer(1, 0, 1)),
            ("elevenlabs", "eleven_turbo_v2_5", spoken),
            ("openai", "gpt-4o-mini-tts", spoken),
            ("deepgram", "nova-3", heard),
            ("assemblyai", "universal-streaming-english", heard),
            ("openai", "gpt-4o-transcribe", heard),
        ] {
            assert!(prices.cost(provider, model, usage).is_some(), "{provider} {model}");
        }
        assert_eq!(prices.cost("openai", "of-my-own", answer(1, 0, 1)), None);
    }

    #[test]
    fn cached_tokens_are_charged_as_such() {
        let prices = Prices::default();
        // A million fresh at 0.15, a million cached at 0.075, a million written at 0.60.
        let cost = prices.cost("openai", "gpt-4o-mini", answer(2_000_000, 1_000_000, 1_000_000));
        assert_eq!(cost, Some(825_000_000));
        let heard = Usage::Stt { link: 0, audio_ms: 30_000 };
        assert_eq!(prices.cost("deepgram", "nova-3-general", heard), Some(3_850_000));
        let spoken = Usage::Tts { link: 0, characters: 500 };
        assert_eq!(prices.cost("elevenlabs", "eleven_multilingual_v2", spoken), Some(50_000_000));
    }

    #[test]
    fn the_longest_match_counts_and_the_operators_own_before_all() {
        let listed = Prices::default();
        let mini = listed.cost("openai", "gpt-4.1-mini-2025-04-14", answer(1_000_000, 0, 0));
        assert_eq!(mini, Some(400_000_000));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("prices.toml");
        std::fs::write(
            &path,
            "[[price]]\nprovider = \"openai\"\nmodel = \"gpt-4.1*\"\ninput = 1\noutput = 2\n",
        )
        .unwrap();
        let own = Prices::load(Some(&path)).unwrap();
        let mini = own.cost("openai", "gpt-4.1-mini-2025-04-14", answer(1_000_000, 0, 0));
        assert_eq!(mini, Some(1_000_000_000));
        assert!(own.cost("openai", "whisper-1", Usage::Stt { link: 0, audio_ms: 1 }).is_some());
    }

    #[test]
    fn every_fault_of_a_file_is_told() {
        let text = "[[price]]\nprovider = \"x\"\nmodel = \"y\"\ninptu = 1\n\
                    [[price]]\nmodel = \"z\"\nminute = -1\n";
        let errors = read(&SourceFile::new("p.toml", text)).unwrap_err();
        assert_eq!(errors.keys(), ["price.inptu", "price.provider", "price.minute"]);
        assert!(Prices::load(Some(Path::new("/nowhere/prices.toml"))).is_err());
    }
}
