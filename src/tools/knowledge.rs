//! `search_knowledge`: a folder of text and Markdown files, in memory, ranked by BM25.
//!
//! Files are cut into passages of some hundred words that overlap a little. Words count as they are
//! and by their beginning, so that *opening* finds *opens*, in any language that puts its endings
//! last; scripts without spaces count by pairs of characters.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};

use super::{Call, Tool, ToolError};
use crate::llm::model::ToolSpec;

/// Files of one folder.
const MAX_FILES: usize = 1_000;
/// All files together, in bytes.
const MAX_BYTES: u64 = 16 << 20;
/// Folders within folders.
const MAX_DEPTH: usize = 8;
/// Longest passage, in characters: 512 tokens of four characters.
const PASSAGE: usize = 2_048;
/// What a passage repeats of the one before: 50 tokens.
const OVERLAP: usize = 200;
/// Passages of one result.
const BEST: usize = 5;
/// Terms of one query that count.
const MAX_TERMS: usize = 64;
/// Characters of a word's beginning.
const STEM: usize = 4;
/// BM25's saturation of repeated words and its share of length, as commonly chosen.
const K1: f32 = 1.2;
const B: f32 = 0.75;

/// Why a folder cannot be searched.
#[derive(Debug, thiserror::Error)]
pub enum KnowledgeError {
    #[error("{0} cannot be read: {1}")]
    Read(PathBuf, std::io::Error),
    #[error("{0} is not UTF-8 text")]
    NotText(PathBuf),
    #[error("{0} holds no .md or .txt file with words in it")]
    Empty(PathBuf),
    #[error("{0} holds more than {MAX_FILES} files, or more than 16 MB of them")]
    TooMuch(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Passage {
    /// The file's path within the folder, and the heading that the passage stands under.
    source: String,
    text: String,
}

/// Passages and where each term occurs.
#[derive(Debug, Default)]
pub struct Index {
    passages: Vec<Passage>,
    lengths: Vec<u32>,
    average: f32,
    /// Passage and number of occurrences.
    terms: HashMap<Box<str>, Vec<(u32, u32)>>,
}

impl Index {
    /// Reads all `.md` and `.txt` files in a folder and the folders in it. Symbolic links and hidden
    /// files are passed over.
    ///
    /// # Errors
    /// What cannot be read, or is too much to be kept in memory.
    pub fn read(folder: &Path) -> Result<Self, KnowledgeError> {
        let mut files = BTreeSet::new();
        find(folder, 0, &mut files)?;
        let too_much = || KnowledgeError::TooMuch(folder.to_owned());
        let (mut bytes, mut passages) = (0, Vec::new());
        for path in files {
            let read = |error| KnowledgeError::Read(path.clone(), error);
            bytes += fs::metadata(&path).map_err(read)?.len();
            if bytes > MAX_BYTES {
                return Err(too_much());
            }
            let text = fs::read(&path).map_err(read)?;
            let text =
                String::from_utf8(text).map_err(|_| KnowledgeError::NotText(path.clone()))?;
            let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
            cut(&name, &text, &mut passages);
        }
        if passages.is_empty() {
            return Err(KnowledgeError::Empty(folder.to_owned()));
        }
        Ok(Self::new(passages))
    }

    fn new(passages: Vec<Passage>) -> Self {
        let mut terms: HashMap<Box<str>, Vec<(u32, u32)>> = HashMap::new();
        let mut lengths = Vec::with_capacity(passages.len());
        for (nth, passage) in passages.iter().enumerate() {
            let mut length = 0;
            for part in [&passage.source, &passage.text] {
                each_term(part, |term| {
                    length += 1;
                    let nth = nth as u32;
                    match terms.get_mut(term) {
                        Some(places) => match places.last_mut() {
                            Some((last, count)) if *last == nth => *count += 1,
                            _ => places.push((nth, 1)),
                        },
                        None => _ = terms.insert(term.into(), vec![(nth, 1)]),
                    }
                });
            }
            lengths.push(length);
        }
        let total: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
        let average = total as f32 / lengths.len().max(1) as f32;
        Self { passages, lengths, average, terms }
    }

    /// Number of passages.
    pub const fn len(&self) -> usize {
        self.passages.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.passages.is_empty()
    }

    /// The passages that fit best, the best one first.
    fn search(&self, query: &str) -> Vec<&Passage> {
        let mut wanted = BTreeSet::new();
        each_term(query, |term| {
            if wanted.len() < MAX_TERMS {
                wanted.insert(term.to_owned());
            }
        });
        let all = self.passages.len() as f32;
        let mut scores: HashMap<u32, f32> = HashMap::new();
        for term in &wanted {
            let Some(places) = self.terms.get(term.as_str()) else { continue };
            let found = places.len() as f32;
            let rarity = ((all - found + 0.5) / (found + 0.5)).ln_1p();
            for (nth, count) in places {
                let (count, length) = (*count as f32, self.lengths[*nth as usize] as f32);
                let weight = count * (K1 + 1.0)
                    / (count + K1 * (1.0 - B + B * length / self.average.max(1.0)));
                *scores.entry(*nth).or_default() += rarity * weight;
            }
        }
        let mut scores: Vec<(u32, f32)> = scores.into_iter().collect();
        scores.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        // What is far behind the best shares a common word with the query and no more.
        let least = scores.first().map_or(0.0, |(_, best)| best * 0.3);
        let best = scores.into_iter().take(BEST).take_while(|(_, score)| *score >= least);
        best.map(|(nth, _)| &self.passages[nth as usize]).collect()
    }
}

fn find(folder: &Path, depth: usize, files: &mut BTreeSet<PathBuf>) -> Result<(), KnowledgeError> {
    let read = |error| KnowledgeError::Read(folder.to_owned(), error);
    for entry in folder.read_dir().map_err(read)? {
        let entry = entry.map_err(read)?;
        let (kind, path) = (entry.file_type().map_err(read)?, entry.path());
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if kind.is_dir() && depth < MAX_DEPTH {
            find(&path, depth + 1, files)?;
        }
        let extension = path.extension().and_then(|it| it.to_str()).unwrap_or_default();
        if kind.is_file() && ["md", "markdown", "txt"].contains(&extension) {
            files.insert(path);
        }
        if files.len() > MAX_FILES {
            return Err(KnowledgeError::TooMuch(folder.to_owned()));
        }
    }
    Ok(())
}

/// Cuts a text at its headings, else between paragraphs, sentences or words.
fn cut(name: &str, text: &str, passages: &mut Vec<Passage>) {
    let (mut heading, mut section) = (String::new(), String::new());
    let mut close = |heading: &str, section: &mut String| {
        let source =
            if heading.is_empty() { name.to_owned() } else { format!("{name}, {heading}") };
        for text in pieces(section) {
            passages.push(Passage { source: source.clone(), text: text.to_owned() });
        }
        section.clear();
    };
    for line in text.lines() {
        let title = line.trim_start_matches('#');
        if line.starts_with('#') && title.starts_with(' ') {
            close(&heading, &mut section);
            heading = title.trim().chars().take(120).collect();
        } else {
            section.push_str(line);
            section.push('\n');
        }
    }
    close(&heading, &mut section);
}

/// Pieces of at most [`PASSAGE`] bytes, each with the end of the one before.
fn pieces(section: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut start = 0;
    let section = section.trim();
    while start < section.len() {
        let rest = &section[start..];
        let mut end = rest.floor_char_boundary(PASSAGE);
        if end < rest.len() {
            let half = rest.floor_char_boundary(PASSAGE / 2);
            let ends = ["\n\n", "\n", ". ", "。", " "];
            let best = ends
                .iter()
                .find_map(|mark| rest[half..end].rfind(mark).map(|at| half + at + mark.len()));
            end = best.unwrap_or(end);
        }
        let piece = rest[..end].trim();
        if !piece.is_empty() {
            out.push(piece);
        }
        if end == rest.len() {
            break;
        }
        // From a word's beginning; always further on.
        let back = rest.floor_char_boundary(end.saturating_sub(OVERLAP));
        let word = rest[back..end].find(char::is_whitespace).map_or(end, |at| back + at);
        start += if word == 0 { end } else { word };
    }
    out
}

/// Each word in small letters, and the beginning of a longer one; pairs of characters where words
/// are written without spaces.
fn each_term(text: &str, mut take: impl FnMut(&str)) {
    let mut term = String::new();
    for word in text.split(|c: char| !c.is_alphanumeric()) {
        term.clear();
        let mut before = None;
        for c in word.chars() {
            if is_ideographic(c) {
                if let Some(before) = before.replace(c) {
                    take(&String::from_iter([before, c]));
                } else if word.chars().count() == 1 {
                    take(word);
                }
            } else {
                before = None;
                term.extend(c.to_lowercase());
            }
        }
        if term.is_empty() {
            continue;
        }
        take(&term);
        if let Some((end, _)) = term.char_indices().nth(STEM) {
            take(&term[..end]);
        }
    }
}

/// Han, Hiragana, Katakana: written without spaces.
const fn is_ideographic(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}')
}

/// The tool around an index.
#[derive(Debug)]
pub struct SearchKnowledge(Arc<Index>);

impl SearchKnowledge {
    pub fn tool(index: Arc<Index>) -> Tool {
        let parameters = json!({
            "type": "object",
            "properties": {"query": {
                "type": "string",
                "minLength": 1,
                "maxLength": 1_000,
                "description": "The words to look for, in the language of the documents",
            }},
            "required": ["query"],
        });
        Tool {
            spec: ToolSpec {
                name: "search_knowledge".into(),
                description: "Searches the documents that you answer from. Use it before you \
                              answer a question of fact about what they cover."
                    .into(),
                parameters,
            },
            run: Arc::new(Self(index)),
            timeout: Duration::from_secs(2),
            outlives_interruption: false,
            waits_for_speech: false,
        }
    }
}

#[async_trait::async_trait]
impl Call for SearchKnowledge {
    async fn call(&self, arguments: &Value) -> Result<String, ToolError> {
        let found = self.0.search(arguments["query"].as_str().unwrap_or_default());
        if found.is_empty() {
            return Ok("Nothing was found. Try other words, or say that you don't know.".into());
        }
        let found = found.iter().map(|passage| format!("[{}]\n{}", passage.source, passage.text));
        Ok(found.collect::<Vec<_>>().join("\n\n"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    async fn ask(index: Index, query: &str) -> String {
        let tool = SearchKnowledge::tool(Arc::new(index));
        tool.run.call(&json!({"query": query})).await.unwrap()
    }

    #[tokio::test]
    async fn the_passage_that_answers_comes_first_with_its_source() {
        let dir = folder(&[
            (
                "hours.md",
                "# Shop\nWe sell bicycles.\n## Opening hours\nMonday to Friday 9 to 18.\n",
            ),
            ("repair/prices.txt", "A flat tyre costs 15 euros. A tune-up costs 60 euros."),
            ("notes.pdf", "opening opening opening"),
            (".hidden.md", "opening opening opening"),
        ]);
        let index = || Index::read(dir.path()).unwrap();
        assert_eq!(index().len(), 3);
        let said = ask(index(), "When do you open?").await;
        assert!(said.starts_with("[hours.md, Opening hours]\nMonday to Friday"), "{said}");
        let said = ask(index(), "price of a TUNE-UP").await;
        assert!(said.starts_with("[repair/prices.txt]\nA flat tyre"), "{said}");
        assert!(ask(index(), "quantum physics").await.starts_with("Nothing was found"));
        assert!(ask(index(), "?").await.starts_with("Nothing was found"));
    }

    #[tokio::test]
    async fn scripts_without_spaces_are_searched_by_pairs() {
        let dir = folder(&[("a.txt", "営業時間は九時からです。"), ("b.txt", "修理の料金です。")]);
        let said = ask(Index::read(dir.path()).unwrap(), "料金はいくらですか").await;
        assert!(said.starts_with("[b.txt]"), "{said}");
    }

    #[test]
    fn what_cannot_be_searched_is_refused_at_the_start() {
        let read = |dir: &tempfile::TempDir| Index::read(dir.path()).map(|index| index.len());
        assert!(matches!(read(&folder(&[("a.pdf", "x")])), Err(KnowledgeError::Empty(_))));
        assert!(matches!(read(&folder(&[("a.md", " \n")])), Err(KnowledgeError::Empty(_))));
        let dir = folder(&[("a.md", "x")]);
        fs::write(dir.path().join("b.md"), [0xff, 0xfe]).unwrap();
        assert!(matches!(read(&dir), Err(KnowledgeError::NotText(_))));
        fs::File::create(dir.path().join("b.md")).unwrap().set_len(MAX_BYTES).unwrap();
        assert!(matches!(read(&dir), Err(KnowledgeError::TooMuch(_))));
        assert!(matches!(Index::read(Path::new("/nowhere")), Err(KnowledgeError::Read(..))));
    }

    #[test]
    fn ten_thousand_passages_are_searched_in_a_moment() {
        let passages = (0..10_000).map(|nth| Passage {
            source: format!("{nth}.md"),
            text: (0..80)
                .map(|word| format!("w{}", (nth * 7 + word * 13) % 3_000))
                .collect::<Vec<_>>()
                .join(" "),
        });
        let index = Index::new(passages.collect());
        // Work, not time: what one query looks at.
        let looked_at: usize = ["w1", "w77", "w2999"]
            .iter()
            .filter_map(|term| index.terms.get(*term))
            .map(Vec::len)
            .sum();
        assert!(looked_at < 10_000, "{looked_at}");
        assert_eq!(index.search("w1 w77 w2999").len(), BEST);
    }

    proptest! {
        #[test]
        fn no_word_is_lost_in_cutting(words in prop::collection::vec("[a-zäß。]{1,30}", 0..600)) {
            let text = words.join(" ");
            let mut passages = Vec::new();
            cut("a.txt", &text, &mut passages);
            prop_assert!(passages.iter().all(|passage| passage.text.len() <= PASSAGE));
            for word in &words {
                prop_assert!(passages.iter().any(|passage| passage.text.contains(word.as_str())));
            }
        }

        #[test]
        fn any_text_can_be_cut(text in "\\PC{0,5000}") {
            let mut passages = Vec::new();
            cut("a.txt", &text, &mut passages);
        }
    }
}
