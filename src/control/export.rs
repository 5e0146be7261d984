//! A session's whole transcript as a file.

use std::fmt::Write;

use axum::{
    Extension,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;
use utoipa::{IntoParams, openapi::schema::Object};

use super::{
    app::App,
    audit,
    auth::Principal,
    error::{ApiError, Faults},
    extract::{Id, Params},
    sessions::{find, one_of},
    transcripts::TranscriptView,
};
use crate::store::{PageRequest, Transcript, TranscriptQuery};

const PAGE: u32 = 1_000;
/// Many hours of talk.
const MAX_ROWS: usize = 100_000;
/// A caption of a final whose length is not known is shown this long.
const SHOWN_MS: i64 = 2_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Json,
    Vtt,
    Srt,
    Text,
}

fn format_schema() -> Object {
    one_of("json", &["json", "vtt", "srt", "text"])
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ExportParams {
    /// json (default), vtt (WebVTT captions), srt (SubRip captions), text.
    #[param(schema_with = format_schema, required = false)]
    format: Option<Format>,
}

/// Get the whole transcript as a file.
#[utoipa::path(
    get, path = "/api/sessions/{id}/transcripts/export", tag = "transcripts",
    params(("id" = String, Path, description = "The session"), ExportParams),
    responses(
        (status = 200, description = "The file", content(
            ([TranscriptView] = "application/json"), (String = "text/vtt"),
            (String = "application/x-subrip"), (String = "text/plain"),
        )),
        Faults,
    ),
)]
pub async fn export(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Id(id): Id,
    Params(params): Params<ExportParams>,
) -> Result<Response, ApiError> {
    let format = params.format.unwrap_or(Format::Json);
    let session = find(&app, &principal, &id).await?;
    let mut rows: Vec<Transcript> = Vec::new();
    let mut as_of = None;
    for page in 1.. {
        let query = TranscriptQuery {
            from_ms: None,
            to_ms: None,
            speaker_id: None,
            flagged: None,
            as_of,
            page: PageRequest { page, limit: PAGE },
        };
        let found = app.store.transcripts(&session.tenant, &id, &query).await?;
        as_of = Some(found.as_of);
        let last = found.page.rows.len() < PAGE as usize;
        rows.extend(found.page.rows);
        if last || rows.len() >= MAX_ROWS {
            break;
        }
    }
    audit::record(&app, &principal, "transcript.export", &id, json!({})).await?;
    let (kind, extension, text) = match format {
        Format::Json => {
            let rows: Vec<TranscriptView> = rows.into_iter().map(Into::into).collect();
            ("application/json", "json", serde_json::to_string(&rows).unwrap_or_default())
        }
        Format::Vtt => ("text/vtt; charset=utf-8", "vtt", vtt(&rows)),
        Format::Srt => ("application/x-subrip; charset=utf-8", "srt", srt(&rows)),
        Format::Text => ("text/plain; charset=utf-8", "txt", plain(&rows)),
    };
    let mut response = ([(header::CONTENT_TYPE, kind)], text).into_response();
    let name = format!("attachment; filename=\"transcript-{}.{extension}\"", session.id);
    if let Ok(name) = HeaderValue::from_str(&name) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

/// WebVTT (<https://www.w3.org/TR/webvtt1/>), a voice span a caption.
fn vtt(rows: &[Transcript]) -> String {
    let mut out = String::from("WEBVTT\n");
    for row in rows {
        let (from, to) = span(row);
        let speaker = escaped(speaker(row)).replace('\n', " ");
        let _ = write!(
            out,
            "\n{} --> {}\n<v {speaker}>{}\n",
            time(from, '.'),
            time(to, '.'),
            one_paragraph(&escaped(&row.content))
        );
    }
    out
}

/// SubRip, which has no standard: as players read it.
fn srt(rows: &[Transcript]) -> String {
    let mut out = String::new();
    for (number, row) in rows.iter().enumerate() {
        let (from, to) = span(row);
        let _ = write!(
            out,
            "{}\n{} --> {}\n{}: {}\n\n",
            number + 1,
            time(from, ','),
            time(to, ','),
            one_paragraph(speaker(row)),
            one_paragraph(&row.content)
        );
    }
    out
}

fn plain(rows: &[Transcript]) -> String {
    let mut out = String::new();
    for row in rows {
        let at = time(row.timestamp_ms, '.');
        let _ = writeln!(
            out,
            "[{}] {}: {}",
            &at[..at.len() - 4],
            one_paragraph(speaker(row)),
            one_paragraph(&row.content)
        );
    }
    out
}

fn speaker(row: &Transcript) -> &str {
    if row.speaker_name.is_empty() { &row.speaker_id } else { &row.speaker_name }
}

fn span(row: &Transcript) -> (i64, i64) {
    let lasts = if row.duration_ms > 0 { row.duration_ms } else { SHOWN_MS };
    (row.timestamp_ms, row.timestamp_ms.saturating_add(lasts))
}

/// `hh:mm:ss.ttt`
fn time(ms: i64, point: char) -> String {
    let ms = ms.max(0);
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}{point}{:03}", ms % 1_000)
}

/// An empty line would end the caption.
fn one_paragraph(text: &str) -> String {
    text.split(['\n', '\r'])
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// WebVTT's cue text has these three of HTML's.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::segment::SpeakerKind;

    fn row(name: &str, content: &str, timestamp_ms: i64, duration_ms: i64) -> Transcript {
        Transcript {
            seq: 1,
            id: "a".into(),
            session_id: "s".into(),
            kind: SpeakerKind::User,
            speaker_id: "ann".into(),
            speaker_name: name.into(),
            content: content.into(),
            timestamp_ms,
            duration_ms,
            confidence: 1.0,
            is_final: true,
            flagged: false,
            flag_reason: None,
            created_at: 0,
        }
    }

    #[test]
    fn captions_say_who_speaks_and_when() {
        let rows = [row("Ann", "Is 1 < 2?", 2_100, 900), row("", "Yes\n\n--> it is", 3_661_005, 0)];
        assert_eq!(
            vtt(&rows),
            "WEBVTT\n\n00:00:02.100 --> 00:00:03.000\n<v Ann>Is 1 &lt; 2?\n\
             \n01:01:01.005 --> 01:01:03.005\n<v ann>Yes --&gt; it is\n"
        );
        assert_eq!(
            srt(&rows),
            "1\n00:00:02,100 --> 00:00:03,000\nAnn: Is 1 < 2?\n\n\
             2\n01:01:01,005 --> 01:01:03,005\nann: Yes --> it is\n\n"
        );
        assert_eq!(plain(&rows), "[00:00:02] Ann: Is 1 < 2?\n[01:01:01] ann: Yes --> it is\n");
    }
}
