//! Configuration faults: all of them at once, each with where it came from and what to do.

use std::{fmt, sync::Arc};

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode,
};

use crate::config::source::SourceFile;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A command-line flag, such as `--http-port`.
    Flag(&'static str),
    /// An environment variable.
    Env(String),
    /// A line (from 1) of a file.
    File { path: String, line: usize },
    /// A file or folder as a whole.
    Path(String),
    /// Nowhere: it is missing.
    Unset,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => f.write_str(flag),
            Self::Env(_) => f.write_str("environment"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::Path(path) => f.write_str(path),
            Self::Unset => f.write_str("not set"),
        }
    }
}

/// One thing that is wrong. Never holds the value of a secret.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The setting: an environment name (`ANTIPHON_HTTP_PORT`), or a key of the agent file
    /// (`llm.provider`).
    pub key: String,
    pub origin: Origin,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub help: Option<String>,
    excerpt: Option<Excerpt>,
}

#[derive(Debug, Clone)]
struct Excerpt {
    source: Arc<NamedSource<String>>,
    start: usize,
    length: usize,
}

impl Fault {
    pub fn new(key: impl Into<String>, origin: Origin, problem: impl Into<String>) -> Self {
        Self { key: key.into(), origin, problem: problem.into(), help: None, excerpt: None }
    }

    /// A fault at a place in a file; the line is shown.
    pub fn at(
        file: &SourceFile,
        span: std::ops::Range<usize>,
        key: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        let start = span.start.min(file.text().len());
        let length = span.end.clamp(start, file.text().len()) - start;
        Self {
            key: key.into(),
            origin: Origin::File { path: file.label().to_owned(), line: file.line_at(start) },
            problem: problem.into(),
            help: None,
            excerpt: Some(Excerpt { source: file.excerpt_source(), start, length }),
        }
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            _ if self.key.is_empty() => write!(f, "{}: {}", self.origin, self.problem),
            Origin::Unset => write!(f, "{}: {}", self.key, self.problem),
            _ => write!(f, "{} ({}): {}", self.key, self.origin, self.problem),
        }
    }
}

impl std::error::Error for Fault {}

impl Diagnostic for Fault {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.excerpt.as_ref().map(|excerpt| &*excerpt.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let excerpt = self.excerpt.as_ref()?;
        let span = LabeledSpan::new(Some("here".into()), excerpt.start, excerpt.length);
        Some(Box::new(std::iter::once(span)))
    }
}

/// Every fault of a configuration; never empty when returned as an error.
#[derive(Debug, Clone, Default)]
pub struct ConfigErrors(Vec<Fault>);

impl ConfigErrors {
    pub fn push(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// The settings at fault, in the order in which they were found.
    pub fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|fault| fault.key.as_str()).collect()
    }

    pub fn faults(&self) -> &[Fault] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// `Ok` when there is no fault.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    /// For a terminal: each fault with the line it is on and what to do. Ends with a newline.
    pub fn render(&self, color: bool) -> String {
        let theme =
            if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_links(false)
            .with_context_lines(1)
            .with_width(100);
        let mut out = String::new();
        for fault in &self.0 {
            if handler.render_report(&mut out, fault).is_err() {
                out.push_str(&fault.to_string());
                out.push('\n');
            }
        }
        out
    }
}

impl Extend<Fault> for ConfigErrors {
    fn extend<I: IntoIterator<Item = Fault>>(&mut self, faults: I) {
        self.0.extend(faults);
    }
}

impl IntoIterator for ConfigErrors {
    type Item = Fault;
    type IntoIter = std::vec::IntoIter<Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// The name most like `given`, if one is near enough to be a slip of the fingers.
pub(crate) fn did_you_mean<'a>(
    given: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let limit = (given.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|name| {
            // `silence_threshold` for `silence_threshold_ms`: a missing or foreign unit.
            let cut = name.strip_prefix(given).is_some_and(|rest| rest.starts_with('_'));
            (if cut { 1 } else { distance(given, name) }, name)
        })
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Edits between two names (insert, delete, replace, swap neighbours), without regard to case.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).flat_map(char::to_lowercase).collect();
    let b: Vec<char> = b.chars().take(64).flat_map(char::to_lowercase).collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_fingers_is_recognised() {
        let known = ["provider", "model", "silence_threshold_ms", "stt"];
        assert_eq!(did_you_mean("porvider", known), Some("provider"));
        assert_eq!(did_you_mean("Model", known), Some("model"));
        assert_eq!(did_you_mean("silence_threshold", known), Some("silence_threshold_ms"));
        assert_eq!(did_you_mean("vtt", known), Some("stt"));
        assert_eq!(did_you_mean("colour", known), None);
    }

    #[test]
    fn the_faulty_line_is_shown_with_what_to_do() {
        let file = SourceFile::new("agents/a.toml", "mode = \"converse\"\nmoode = 1\n");
        let mut errors = ConfigErrors::default();
        errors.push(Fault::at(&file, 18..23, "moode", "unknown key").help("did you mean `mode`?"));
        errors.push(Fault::new("LIVEKIT_URL", Origin::Unset, "is required"));
        let text = errors.render(false);
        assert!(text.contains("agents/a.toml:2:1"), "{text}");
        assert!(text.contains("moode = 1"), "{text}");
        assert!(text.contains("did you mean `mode`?"), "{text}");
        assert!(text.contains("LIVEKIT_URL: is required"), "{text}");
        assert_eq!(errors.keys(), ["moode", "LIVEKIT_URL"]);
    }
}
