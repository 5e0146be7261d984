//! What a session has used, by provider and model, and what that costs.

use crate::{session::command::Usage, transcript::wire::UsageItem};

/// Providers and models of one session whose totals are kept.
const MAX_ROWS: usize = 64;

/// One use, attributed and priced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used<'a> {
    pub usage: Usage,
    pub provider: &'a str,
    pub model: &'a str,
    /// In billionths of a US dollar; `None` where no price is known.
    pub cost: Option<u64>,
}

/// The sums of a session, a row for each service, provider and model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Totals(Vec<UsageItem>);

impl Totals {
    pub fn add(&mut self, used: Used<'_>) {
        let one = UsageItem::new(used);
        let same = |row: &&mut UsageItem| {
            (&row.service, &row.provider, &row.model) == (&one.service, &one.provider, &one.model)
        };
        if let Some(row) = self.0.iter_mut().find(same) {
            row.add(&one);
        } else if self.0.len() < MAX_ROWS {
            self.0.push(one);
        }
    }

    pub fn rows(&self) -> &[UsageItem] {
        &self.0
    }

    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of all that has a price, in US dollars.
    pub fn cost_usd(&self) -> f64 {
        dollars(self.0.iter().filter_map(|row| row.cost_nano_usd).sum())
    }
}

/// Billionths of a US dollar, to a millionth.
pub fn dollars(nano: u64) -> f64 {
    nano.div_ceil(1_000) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(model: &str, characters: u64, cost: Option<u64>) -> Used<'_> {
        Used { usage: Usage::Tts { link: 0, characters }, provider: "p", model, cost }
    }

    #[test]
    fn uses_add_up_by_provider_and_model() {
        let mut totals = Totals::default();
        totals.add(said("a", 10, Some(1_500_000)));
        totals.add(said("b", 5, None));
        totals.add(said("a", 20, Some(500_000)));
        let counts: Vec<_> = totals.rows().iter().map(|row| row.characters).collect();
        assert_eq!(counts, [Some(30), Some(5)]);
        assert_eq!(totals.rows()[1].cost_nano_usd, None, "what has no price has no cost");
        assert!((totals.cost_usd() - 0.002).abs() < 1e-9);
    }

    #[test]
    fn an_estimate_makes_its_row_one() {
        let llm = |estimated| Used {
            usage: Usage::Llm {
                link: 0,
                input_tokens: 9,
                cached_tokens: 1,
                output_tokens: 2,
                estimated,
            },
            provider: "p",
            model: "m",
            cost: Some(1),
        };
        let mut totals = Totals::default();
        totals.add(llm(false));
        assert_eq!(totals.rows()[0].estimated, None);
        totals.add(llm(true));
        let row = &totals.rows()[0];
        assert_eq!((row.input_tokens, row.estimated), (Some(18), Some(true)));
    }
}
