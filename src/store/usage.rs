//! What sessions have used, by provider and model, and what that cost.

use super::{
    Store, StoreError,
    db::{Row, Scope, Tx, args},
};

/// The sum of one service, provider and model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UsageRow {
    /// stt, llm or tts.
    pub service: String,
    pub provider: String,
    pub model: String,
    pub audio_ms: i64,
    pub input_tokens: i64,
    pub cached_tokens: i64,
    pub output_tokens: i64,
    pub characters: i64,
    /// In billionths of a US dollar; `None`: no price was known.
    pub cost_nano_usd: Option<i64>,
    /// Some of the tokens were counted by the length of the texts.
    pub estimated: bool,
}

/// Whose use is summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageOf<'a> {
    Session(&'a str),
    /// All sessions of the tenant that began from the first (inclusive) to the second (exclusive).
    Began(i64, i64),
}

/// Puts the sums of one worker's session in the place of those told before.
pub(super) async fn set_in(
    tx: &mut Tx,
    tenant: &str,
    session: &str,
    run: i64,
    row: &UsageRow,
) -> Result<(), StoreError> {
    tx.run(
        "INSERT INTO session_usage (tenant, session_id, run, service, provider, model, audio_ms,
                                    input_tokens, cached_tokens, output_tokens, characters,
                                    cost_nano_usd, estimated)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
         ON CONFLICT (session_id, run, service, provider, model) DO UPDATE SET
             audio_ms = excluded.audio_ms, input_tokens = excluded.input_tokens,
             cached_tokens = excluded.cached_tokens, output_tokens = excluded.output_tokens,
             characters = excluded.characters, cost_nano_usd = excluded.cost_nano_usd,
             estimated = excluded.estimated",
        args![
            tenant,
            session,
            run,
            &row.service,
            &row.provider,
            &row.model,
            row.audio_ms,
            row.input_tokens,
            row.cached_tokens,
            row.output_tokens,
            row.characters,
            row.cost_nano_usd,
            row.estimated
        ],
    )
    .await?;
    Ok(())
}

impl Store {
    /// The sums by service, provider and model, in this order.
    pub async fn usage(&self, tenant: &str, of: UsageOf<'_>) -> Result<Vec<UsageRow>, StoreError> {
        let (session, from, to) = match of {
            UsageOf::Session(id) => (Some(id), i64::MIN, i64::MAX),
            UsageOf::Began(from, to) => (None, from, to),
        };
        let mut tx = self.db.read(Scope::Tenant(tenant)).await?;
        // Postgres sums integers up as decimals.
        let rows = tx
            .all(
                "SELECT service, provider, model, CAST(SUM(audio_ms) AS BIGINT) AS audio_ms,
                        CAST(SUM(input_tokens) AS BIGINT) AS input_tokens,
                        CAST(SUM(cached_tokens) AS BIGINT) AS cached_tokens,
                        CAST(SUM(output_tokens) AS BIGINT) AS output_tokens,
                        CAST(SUM(characters) AS BIGINT) AS characters,
                        CAST(SUM(cost_nano_usd) AS BIGINT) AS cost_nano_usd,
                        MAX(CASE WHEN estimated THEN 1 ELSE 0 END) = 1 AS estimated
                 FROM session_usage
                 WHERE tenant = $1 AND ($2 IS NULL OR session_id = $2) AND run >= $3 AND run < $4
                 GROUP BY service, provider, model ORDER BY service, provider, model LIMIT 1000",
                args![tenant, session, from, to],
            )
            .await?;
        rows.iter().map(read_usage).collect()
    }
}

fn read_usage(row: &Row) -> Result<UsageRow, StoreError> {
    Ok(UsageRow {
        service: row.text("service")?,
        provider: row.text("provider")?,
        model: row.text("model")?,
        audio_ms: row.int("audio_ms")?,
        input_tokens: row.int("input_tokens")?,
        cached_tokens: row.int("cached_tokens")?,
        output_tokens: row.int("output_tokens")?,
        characters: row.int("characters")?,
        cost_nano_usd: row.int_or_none("cost_nano_usd")?,
        estimated: row.bool("estimated")?,
    })
}
