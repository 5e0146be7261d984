//! Reads a TOML document table by table and collects every fault on the way: a value that is
//! missing, of the wrong type or out of range is a fault, never the end of the reading.

use std::{
    cell::{Cell, RefCell},
    ops::{Range, RangeInclusive},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::config::{
    error::{Fault, did_you_mean},
    source::SourceFile,
};

/// A document being read.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    pub file: &'a SourceFile,
    faults: RefCell<Vec<Fault>>,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Located<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// One table of a document. Each key is asked for once; [`Reader::finish`] finds the rest.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    document: &'a Document<'a>,
    /// `llm` or empty.
    path: String,
    table: Option<&'a DeTable<'a>>,
    asked: RefCell<Vec<&'static str>>,
    finished: Cell<bool>,
}

/// Parses a document; every fault of its syntax that can be told apart, each with its line.
pub(crate) fn parse(file: &SourceFile) -> (Spanned<DeTable<'_>>, Vec<Fault>) {
    let (table, errors) = DeTable::parse_recoverable(file.text());
    let faults = errors
        .iter()
        .map(|error| {
            let span = error.span().unwrap_or(0..0);
            Fault::at(file, span, "", format!("this is not TOML: {}", error.message()))
        })
        .collect();
    (table, faults)
}

impl<'a> Document<'a> {
    pub fn new(file: &'a SourceFile) -> Self {
        Self { file, faults: RefCell::default() }
    }

    pub fn root(&'a self, table: &'a DeTable<'a>) -> Reader<'a> {
        Reader::new(self, String::new(), Some(table))
    }

    pub fn push(&self, fault: Fault) {
        self.faults.borrow_mut().push(fault);
    }

    pub fn into_faults(self) -> Vec<Fault> {
        self.faults.into_inner()
    }
}

impl<'a> Reader<'a> {
    fn new(document: &'a Document<'a>, path: String, table: Option<&'a DeTable<'a>>) -> Self {
        Self { document, path, table, asked: RefCell::default(), finished: Cell::new(false) }
    }

    pub fn fault(&self, key: &str, span: Range<usize>, problem: impl Into<String>) -> Fault {
        Fault::at(self.document.file, span, self.full(key), problem)
    }

    pub fn push(&self, fault: Fault) {
        self.document.push(fault);
    }

    /// `model` in `[llm]` is `llm.model`.
    pub fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// A table that may be missing: then it is empty.
    pub fn table(&self, key: &'static str) -> Reader<'a> {
        let table = self.get(key).and_then(|value| match value.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => self.wrong_type(key, value, "a table"),
        });
        Reader::new(self.document, self.full(key), table)
    }

    /// A list of at most `most` tables (`[[llm.fallback]]`); may be missing.
    pub fn tables(&self, key: &'static str, most: usize) -> Vec<Reader<'a>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let DeValue::Array(array) = value.get_ref() else {
            let _: Option<()> = self.wrong_type(key, value, "a list of tables");
            return Vec::new();
        };
        if array.len() > most {
            self.push(self.fault(key, value.span(), format!("holds more than {most} tables")));
        }
        let mut tables = Vec::new();
        for element in array.iter().take(most) {
            match element.get_ref() {
                DeValue::Table(table) => {
                    tables.push(Reader::new(self.document, self.full(key), Some(table)));
                }
                _ => _ = self.wrong_type::<()>(key, element, "a table"),
            }
        }
        tables
    }

    pub fn string(&self, key: &'static str) -> Option<Located<String>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::String(text) => {
                Some(Located { value: text.clone().into_owned(), span: value.span() })
            }
            _ => self.wrong_type(key, value, "a string"),
        }
    }

    /// A string that is not blank.
    pub fn text(&self, key: &'static str) -> Option<String> {
        let found = self.string(key)?;
        if found.value.trim().is_empty() {
            self.push(self.fault(key, found.span, "is empty"));
            return None;
        }
        Some(found.value)
    }

    pub fn boolean(&self, key: &'static str) -> Option<bool> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Boolean(value) => Some(*value),
            _ => self.wrong_type(key, value, "true or false"),
        }
    }

    pub fn integer(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.get(key)?;
        let DeValue::Integer(integer) = value.get_ref() else {
            return self.wrong_type(key, value, "a whole number");
        };
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let inside = number.filter(|number| range.contains(number));
        if inside.is_none() {
            let problem = format!("{integer} is not between {} and {}", range.start(), range.end());
            self.push(self.fault(key, value.span(), problem));
        }
        inside
    }

    pub fn float(&self, key: &'static str, range: RangeInclusive<f32>) -> Option<f32> {
        let value = self.get(key)?;
        let text = match value.get_ref() {
            DeValue::Float(float) => float.as_str(),
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str(),
            _ => return self.wrong_type(key, value, "a number"),
        };
        let inside = text.parse::<f32>().ok().filter(|number| range.contains(number));
        if inside.is_none() {
            let problem = format!("{text} is not between {} and {}", range.start(), range.end());
            self.push(self.fault(key, value.span(), problem));
        }
        inside
    }

    /// A list of at most `most` strings that are not blank.
    pub fn strings(&self, key: &'static str, most: usize) -> Option<Vec<String>> {
        let value = self.get(key)?;
        let DeValue::Array(array) = value.get_ref() else {
            return self.wrong_type(key, value, "a list of strings");
        };
        if array.len() > most {
            self.push(self.fault(key, value.span(), format!("holds more than {most} strings")));
            return None;
        }
        let mut strings = Vec::with_capacity(array.len());
        for element in array {
            match element.get_ref() {
                DeValue::String(text) if !text.trim().is_empty() => {
                    strings.push(text.clone().into_owned());
                }
                _ => return self.wrong_type(key, element, "a string that is not empty"),
            }
        }
        Some(strings)
    }

    /// A table of strings, such as headers; may be missing.
    pub fn pairs(&self, key: &'static str, most: usize) -> Vec<(String, Located<String>)> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let DeValue::Table(table) = value.get_ref() else {
            let _: Option<()> = self.wrong_type(key, value, "a table of strings");
            return Vec::new();
        };
        let mut pairs = Vec::new();
        for (name, value) in table.iter().take(most) {
            match value.get_ref() {
                DeValue::String(text) => {
                    let value = Located { value: text.clone().into_owned(), span: value.span() };
                    pairs.push((name.get_ref().clone().into_owned(), value));
                }
                _ => _ = self.wrong_type::<()>(key, value, "a string"),
            }
        }
        pairs
    }

    /// Any value, as JSON: for what others define, such as a JSON Schema.
    pub fn json(&self, key: &'static str) -> Option<serde_json::Value> {
        Some(as_json(self.get(key)?.get_ref()))
    }

    /// One of some words.
    pub fn choice<T: Copy>(&self, key: &'static str, choices: &[(&'static str, T)]) -> Option<T> {
        let found = self.string(key)?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == found.value) {
            return Some(*value);
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let problem = format!("{:?} is none of: {}", found.value, words.join(", "));
        let mut fault = self.fault(key, found.span, problem);
        if let Some(word) = did_you_mean(&found.value, words) {
            fault = fault.help(format!("did you mean {word:?}?"));
        }
        self.push(fault);
        None
    }

    /// Every key that was never asked for is a fault. `elsewhere` may say where a key belongs.
    pub fn finish(&self, elsewhere: impl Fn(&str) -> Option<String>) {
        self.finished.set(true);
        let asked = self.asked.borrow();
        for (key, _) in self.table.into_iter().flatten() {
            let name = key.get_ref().as_ref();
            if asked.contains(&name) {
                continue;
            }
            let full = self.full(name);
            let mut fault = self.fault(name, key.span(), format!("`{full}` is not a setting"));
            if let Some(help) = elsewhere(&full) {
                fault = fault.help(help);
            } else if let Some(near) = did_you_mean(name, asked.iter().copied()) {
                fault = fault.help(format!("did you mean `{near}`?"));
            } else {
                fault = fault.help(format!("known here: {}", asked.join(", ")));
            }
            self.push(fault);
        }
    }

    /// What kind of value stands there, without asking for it.
    pub fn is_table(&self, key: &str) -> bool {
        self.peek(key).is_some_and(DeValue::is_table)
    }

    pub fn is_string(&self, key: &str) -> bool {
        self.peek(key).is_some_and(DeValue::is_str)
    }

    fn peek(&self, key: &str) -> Option<&'a DeValue<'a>> {
        let (_, value) = self.table?.iter().find(|(name, _)| name.get_ref() == key)?;
        Some(value.get_ref())
    }

    fn get(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        debug_assert!(!self.finished.get(), "asked for `{key}` after finish");
        self.asked.borrow_mut().push(key);
        let (_, value) = self.table?.iter().find(|(name, _)| name.get_ref() == key)?;
        Some(value)
    }

    fn wrong_type<T>(&self, key: &str, value: &Spanned<DeValue<'_>>, want: &str) -> Option<T> {
        let problem = format!("must be {want}, is {}", kind(value.get_ref()));
        self.push(self.fault(key, value.span(), problem));
        None
    }
}

fn as_json(value: &DeValue<'_>) -> serde_json::Value {
    match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| number.as_str().into(), Into::into),
        DeValue::Float(number) => {
            number.as_str().parse::<f64>().map_or(serde_json::Value::Null, Into::into)
        }
        DeValue::Boolean(value) => (*value).into(),
        DeValue::Datetime(value) => value.to_string().into(),
        DeValue::Array(values) => values.iter().map(|value| as_json(value.get_ref())).collect(),
        DeValue::Table(table) => serde_json::Value::Object(
            table
                .iter()
                .map(|(name, value)| {
                    (name.get_ref().clone().into_owned(), as_json(value.get_ref()))
                })
                .collect(),
        ),
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
