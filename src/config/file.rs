//! antiphon.toml: the process's settings in a file, as strings with the place they stand at.

use std::{collections::BTreeMap, ops::Range};

use toml::de::{DeTable, DeValue};

use crate::config::{
    agent_file::is_agent_key,
    error::{Fault, did_you_mean},
    names, reader,
    source::SourceFile,
};

/// The file's settings by dotted key (`livekit.url`).
#[derive(Debug)]
pub(crate) struct ProcessFile {
    pub source: SourceFile,
    values: BTreeMap<String, (String, Range<usize>)>,
}

impl ProcessFile {
    /// Reads all settings and gathers all faults of the file's form; values are judged later.
    pub fn parse(source: SourceFile) -> (Self, Vec<Fault>) {
        let mut values = BTreeMap::new();
        let (table, mut faults) = reader::parse(&source);
        // After broken syntax the recovered rest may say anything about keys.
        if faults.is_empty() {
            walk(&source, table.get_ref(), "", &mut values, &mut faults);
        }
        drop(table);
        (Self { source, values }, faults)
    }

    pub fn get(&self, key: &str) -> Option<&(String, Range<usize>)> {
        self.values.get(key)
    }
}

fn walk(
    source: &SourceFile,
    table: &DeTable<'_>,
    path: &str,
    values: &mut BTreeMap<String, (String, Range<usize>)>,
    faults: &mut Vec<Fault>,
) {
    for (name, value) in table {
        let name_text = name.get_ref().as_ref();
        let key =
            if path.is_empty() { name_text.to_owned() } else { format!("{path}.{name_text}") };
        let setting = names::ALL.iter().find(|setting| setting.file == Some(&key));
        let text = match (setting, value.get_ref()) {
            (None, DeValue::Table(inner)) if names::is_process_key(&key) => {
                walk(source, inner, &key, values, faults);
                continue;
            }
            (None, _) => {
                faults.push(unknown(source, &key, name.span()));
                continue;
            }
            (Some(_), DeValue::String(text)) => text.clone().into_owned(),
            (Some(_), DeValue::Integer(number)) if number.radix() == 10 => {
                number.as_str().to_owned()
            }
            (Some(_), DeValue::Float(number)) => number.as_str().to_owned(),
            (Some(_), DeValue::Boolean(yes)) => yes.to_string(),
            (Some(setting), _) => {
                let problem = format!("`{key}` must be a string, a number, true or false");
                faults.push(Fault::at(source, value.span(), setting.env, problem));
                continue;
            }
        };
        values.insert(key, (text, value.span()));
    }
}

fn unknown(source: &SourceFile, key: &str, span: Range<usize>) -> Fault {
    let fault = Fault::at(source, span, key, format!("`{key}` is not a setting of the process"));
    if is_agent_key(key) {
        return fault.help(format!("`{key}` is an agent's: it belongs in agents/NAME.toml"));
    }
    match did_you_mean(key, names::ALL.iter().filter_map(|setting| setting.file)) {
        Some(near) => fault.help(format!("did you mean `{near}`?")),
        None => fault.help("antiphon.toml.example lists the settings"),
    }
}
