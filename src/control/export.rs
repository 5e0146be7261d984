//! A session's whole transcript as a file.

use std::fmt::Write;

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
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
use crate::store::{StoreError, Transcript};

/// Rows read, and sent, at a time.
const PAGE: u32 = 1_000;
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
    let tenant = session.tenant.clone();
    // The first rows are read before the answer begins: what fails by then has its own status.
    let first = app.store.transcripts_after(&tenant, &id, None, PAGE).await?;
    audit::record(&app, &principal, "transcript.export", &id, json!({})).await?;
    let text = stream::try_unfold(Some((first, Writer::new(format))), move |left| {
        let (app, tenant, id) = (app.clone(), tenant.clone(), id.clone());
        async move {
            let Some((rows, mut writer)) = left else { return Ok(None) };
            let last = rows.last().filter(|_| rows.len() >= PAGE as usize);
            let next = match last.map(|row| (row.timestamp_ms, row.seq)) {
                Some(last) => {
                    Some(app.store.transcripts_after(&tenant, &id, Some(last), PAGE).await?)
                }
                None => None,
            };
            let text = writer.write(rows, next.is_none());
            Ok::<_, StoreError>(Some((text, next.map(|rows| (rows, writer)))))
        }
    });
    let (kind, extension) = format.kind();
    let mut response = ([(header::CONTENT_TYPE, kind)], Body::from_stream(text)).into_response();
    let name = format!("attachment; filename=\"transcript-{}.{extension}\"", session.id);
    if let Ok(name) = HeaderValue::from_str(&name) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

impl Format {
    /// The media type and the file name's extension.
    const fn kind(self) -> (&'static str, &'static str) {
        match self {
            Self::Json => ("application/json", "json"),
            Self::Vtt => ("text/vtt; charset=utf-8", "vtt"),
            Self::Srt => ("application/x-subrip; charset=utf-8", "srt"),
            Self::Text => ("text/plain; charset=utf-8", "txt"),
        }
    }
}

/// Writes a file piece by piece.
#[derive(Debug)]
struct Writer {
    format: Format,
    /// Rows written so far.
    written: usize,
}

impl Writer {
    const fn new(format: Format) -> Self {
        Self { format, written: 0 }
    }

    /// The next rows as text, with the file's beginning and its end where they belong.
    fn write(&mut self, rows: Vec<Transcript>, are_last: bool) -> String {
        let mut out = String::new();
        if self.written == 0 {
            out.push_str(match self.format {
                Format::Json => "[",
                Format::Vtt => "WEBVTT\n",
                Format::Srt | Format::Text => "",
            });
        }
        for row in rows {
            self.written += 1;
            match self.format {
                Format::Json => json(&mut out, row, self.written),
                Format::Vtt => vtt(&mut out, &row),
                Format::Srt => srt(&mut out, &row, self.written),
                Format::Text => plain(&mut out, &row),
            }
        }
        if are_last && self.format == Format::Json {
            out.push(']');
        }
        out
    }
}

// Writing to a String cannot fail.

fn json(out: &mut String, row: Transcript, number: usize) {
    let row = serde_json::to_string(&TranscriptView::from(row)).unwrap_or_default();
    let _ = write!(out, "{}{row}", if number > 1 { "," } else { "" });
}

/// WebVTT (<https://www.w3.org/TR/webvtt1/>), a voice span a caption.
fn vtt(out: &mut String, row: &Transcript) {
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

/// SubRip, which has no standard: as players read it.
fn srt(out: &mut String, row: &Transcript, number: usize) {
    let (from, to) = span(row);
    let _ = write!(
        out,
        "{number}\n{} --> {}\n{}: {}\n\n",
        time(from, ','),
        time(to, ','),
        one_paragraph(speaker(row)),
        one_paragraph(&row.content)
    );
}

fn plain(out: &mut String, row: &Transcript) {
    let at = time(row.timestamp_ms, '.');
    let _ = writeln!(
        out,
        "[{}] {}: {}",
        &at[..at.len() - 4],
        one_paragraph(speaker(row)),
        one_paragraph(&row.content)
    );
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
        let written = |format| {
            let mut writer = Writer::new(format);
            let [first, second] = rows.clone();
            writer.write(vec![first], false) + &writer.write(vec![second], true)
        };
        assert_eq!(
            written(Format::Vtt),
            "WEBVTT\n\n00:00:02.100 --> 00:00:03.000\n<v Ann>Is 1 &lt; 2?\n\
             \n01:01:01.005 --> 01:01:03.005\n<v ann>Yes --&gt; it is\n"
        );
        assert_eq!(
            written(Format::Srt),
            "1\n00:00:02,100 --> 00:00:03,000\nAnn: Is 1 < 2?\n\n\
             2\n01:01:01,005 --> 01:01:03,005\nann: Yes --> it is\n\n"
        );
        assert_eq!(
            written(Format::Text),
            "[00:00:02] Ann: Is 1 < 2?\n[01:01:01] ann: Yes --> it is\n"
        );
        let json: Vec<serde_json::Value> = serde_json::from_str(&written(Format::Json)).unwrap();
        assert_eq!((json.len(), &json[1]["content"]), (2, &json!("Yes\n\n--> it is")));
        assert_eq!(Writer::new(Format::Json).write(Vec::new(), true), "[]");
    }
}
