//! What was used, and what it cost.

use axum::{Extension, Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    app::App,
    auth::Principal,
    error::{ApiError, Faults},
    extract::{Id, Params},
    sessions::find,
};
use crate::{
    store::usage::{UsageOf, UsageRow},
    telemetry::usage::dollars,
    transcript::wire::UsageItem,
};

/// The end of the year 9999.
const MAX_TIME: i64 = 253_402_300_800_000;

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "usage": [{
        "service": "llm", "provider": "openai", "model": "gpt-4o-mini", "inputTokens": 1832,
        "cachedTokens": 1024, "outputTokens": 89, "costNanoUsd": 251_400
    }],
    "costUsd": 0.000_252
}))]
pub struct UsageReport {
    /// By service, provider and model; as the workers have told so far, about once a minute and at
    /// the end of a session.
    usage: Vec<UsageItem>,
    /// Of all that has a price, in US dollars.
    cost_usd: f64,
}

impl From<Vec<UsageRow>> for UsageReport {
    fn from(rows: Vec<UsageRow>) -> Self {
        let nano = rows.iter().filter_map(|row| row.cost_nano_usd).fold(0, i64::saturating_add);
        Self { usage: rows.into_iter().map(item).collect(), cost_usd: dollars(nano.unsigned_abs()) }
    }
}

/// As it is stored: counts that do not apply are 0.
pub fn row(item: UsageItem) -> UsageRow {
    let count = |value: Option<u64>| i64::try_from(value.unwrap_or_default()).unwrap_or(i64::MAX);
    UsageRow {
        audio_ms: count(item.audio_ms),
        input_tokens: count(item.input_tokens),
        cached_tokens: count(item.cached_tokens),
        output_tokens: count(item.output_tokens),
        characters: count(item.characters),
        cost_nano_usd: item.cost_nano_usd.map(|cost| count(Some(cost))),
        estimated: item.estimated.unwrap_or_default(),
        service: item.service,
        provider: item.provider,
        model: item.model,
    }
}

fn item(row: UsageRow) -> UsageItem {
    let count = |value: i64, of: &str| (row.service == of).then_some(value.unsigned_abs());
    UsageItem {
        audio_ms: count(row.audio_ms, "stt"),
        input_tokens: count(row.input_tokens, "llm"),
        cached_tokens: count(row.cached_tokens, "llm"),
        output_tokens: count(row.output_tokens, "llm"),
        characters: count(row.characters, "tts"),
        cost_nano_usd: row.cost_nano_usd.map(i64::unsigned_abs),
        estimated: row.estimated.then_some(true),
        service: row.service,
        provider: row.provider,
        model: row.model,
    }
}

/// What a session has used, and what it cost.
#[utoipa::path(
    get, path = "/api/sessions/{id}/usage", tag = "sessions",
    params(("id" = String, Path, description = "The session")),
    responses((status = 200, description = "The sums", body = UsageReport), Faults),
)]
pub async fn of_session(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(id): Id,
) -> Result<Json<UsageReport>, ApiError> {
    let session = find(&app, &principal, &id).await?;
    let rows = app.store.usage(&session.tenant, UsageOf::Session(&session.id)).await?;
    Ok(Json(rows.into()))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UsageParams {
    /// Sessions that began at this time or later, in ms since the Unix epoch.
    #[param(minimum = 0, maximum = 253_402_300_800_000_i64, default = 0)]
    from: Option<i64>,
    /// And before this.
    #[param(minimum = 0, maximum = 253_402_300_800_000_i64)]
    to: Option<i64>,
}

/// What all sessions of the tenant have used. Sessions that are too old to be kept count no more.
#[utoipa::path(
    get, path = "/api/usage", tag = "operations", params(UsageParams),
    responses((status = 200, description = "The sums", body = UsageReport), Faults),
)]
pub async fn of_tenant(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Params(params): Params<UsageParams>,
) -> Result<Json<UsageReport>, ApiError> {
    let (from, to) = (params.from.unwrap_or(0), params.to.unwrap_or(MAX_TIME));
    for (name, at) in [("from", from), ("to", to)] {
        if !(0..=MAX_TIME).contains(&at) {
            let wrong = format!("{name} is not a time in ms since the Unix epoch");
            return Err(ApiError::invalid(wrong));
        }
    }
    let rows = app.store.usage(&principal.tenant, UsageOf::Began(from, to)).await?;
    Ok(Json(rows.into()))
}
