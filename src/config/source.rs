//! Text files that a configuration is read from.

use std::{fs::File, io::Read, path::Path, sync::Arc};

use miette::NamedSource;

/// Larger files are refused: nobody writes a prompt or a configuration of this size by hand.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// Words in a key that tell that its value must not be shown.
const SECRET_WORDS: [&str; 6] = ["api_key", "apikey", "secret", "token", "password", "database"];

/// A file's text and the name by which users know it.
#[derive(Debug, Clone)]
pub struct SourceFile {
    label: String,
    text: Arc<str>,
}

impl SourceFile {
    pub fn new(label: impl Into<String>, text: impl Into<Arc<str>>) -> Self {
        Self { label: label.into(), text: text.into() }
    }

    /// Reads a file; the error is a sentence's end: "cannot be read: …".
    pub fn read(path: &Path) -> Result<Self, String> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|error| format!("cannot be read: {error}"))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(format!("is larger than {MAX_FILE_BYTES} bytes"));
        }
        let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())?;
        Ok(Self::new(path.display().to_string(), text))
    }

    /// The path, or `built-in …`.
    pub fn label(&self) -> &str {
        &self.label
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// The line (from 1) that holds this byte.
    pub fn line_at(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
    }

    /// The bytes of a line (from 1), without its end.
    pub fn line_span(&self, line: usize) -> std::ops::Range<usize> {
        let mut start = 0;
        for (index, content) in self.text.split_inclusive('\n').enumerate() {
            if index + 1 == line {
                return start..start + content.trim_end_matches(['\n', '\r']).len();
            }
            start += content.len();
        }
        self.text.len()..self.text.len()
    }

    /// What may be shown of the file: the same bytes, with the values of secrets masked.
    pub(crate) fn excerpt_source(&self) -> Arc<NamedSource<String>> {
        Arc::new(NamedSource::new(&self.label, masked(&self.text)))
    }
}

/// Replaces what follows a secret's `=` on its line by as many `*`. Text between triple quotes may
/// be a secret of several lines: then everything is masked that is not a line's end.
fn masked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside: Option<&str> = None;
    for line in text.split_inclusive('\n') {
        let lower = line.to_ascii_lowercase();
        let from = match inside {
            Some(_) => Some(0),
            None => secret_key_end(&lower)
                .map(|end| lower[end..].find('=').map_or(end, |equals| end + equals + 1)),
        };
        if from.is_some() {
            let quotes = ["\"\"\"", "'''"];
            inside = match inside {
                Some(quote) if line.contains(quote) => None,
                Some(quote) => Some(quote),
                None => quotes.into_iter().find(|quote| line.matches(quote).count() == 1),
            };
        }
        let (shown, hidden) = line.split_at(from.unwrap_or(line.len()));
        out.push_str(shown);
        // Byte for byte, so that spans still point at the right place.
        out.extend(hidden.bytes().map(|byte| match byte {
            b'\n' | b'\r' | b' ' => byte as char,
            _ => '*',
        }));
    }
    out
}

/// Where the first word that names a secret ends on a line, or the scheme of a URL with a password.
fn secret_key_end(line: &str) -> Option<usize> {
    let url = line.find("://").filter(|_| line.contains('@'));
    SECRET_WORDS
        .iter()
        .filter_map(|word| line.find(word).map(|at| at + word.len()))
        // `max_tokens` is a number, no secret.
        .filter(|&end| !line[end..].starts_with('s'))
        .chain(url)
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_byte_for_byte() {
        let text =
            "[livekit]\napi_secret = \"sésame\" # x\nurl = \"ws://h\"\ntoken = \"\"\"a\nb\"\"\"\n";
        let shown = masked(text);
        assert_eq!(shown.len(), text.len());
        assert!(shown.contains("url = \"ws://h\""), "{shown}");
        assert!(!shown.contains("same") && !shown.contains("\nb"), "{shown}");
    }

    #[test]
    fn a_secret_in_an_inline_table_or_a_url_is_masked() {
        let shown = masked("url = \"ws://u:sesame@h\"\n");
        assert!(shown.contains("url") && !shown.contains("sesame"), "{shown}");
        let shown = masked("livekit = { url = \"ws://h\", api_key = \"sesame\" }\n");
        assert!(shown.contains("ws://h") && !shown.contains("sesame"), "{shown}");
    }

    #[test]
    fn a_secret_on_a_broken_line_is_masked() {
        let shown = masked("max_tokens = 7\napi_key \"sesame\"\n");
        assert!(shown.contains("max_tokens = 7") && !shown.contains("sesame"), "{shown}");
    }

    #[test]
    fn lines_are_counted_from_one() {
        let file = SourceFile::new("f", "ab\ncd\n");
        assert_eq!((file.line_at(0), file.line_at(2), file.line_at(3)), (1, 1, 2));
        assert_eq!(file.line_span(2), 3..5);
    }
}
