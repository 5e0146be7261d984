//! System prompts: Markdown templates rendered with what the room says about itself.

use std::{borrow::Cow, collections::HashSet};

use minijinja::{Environment, UndefinedBehavior, value::Serde};
use serde_json::{Map, Value as Json};

use crate::config::{error::Fault, source::SourceFile};

/// Room metadata beyond this is refused; LiveKit's own limit is of the same order.
pub const MAX_METADATA_BYTES: usize = 64 * 1024;

/// Instructions of a template's loops and calls: metadata must not keep a template busy.
const FUEL: u64 = 200_000;

/// What stands between the parts of a system prompt.
const SEPARATOR: &str = "\n\n---\n\n";

/// Fields that follow the prompt file, in this order, each as text of its own, unless the template
/// itself uses them.
const PARTS: [&str; 3] = ["entity_instructions", "department_instructions", "custom_prompt"];

/// What a room's metadata says: `entity_id`, `department_id`, `custom_prompt`, `participant_ids`
/// and whatever else its maker put in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoomContext(Map<String, Json>);

/// Why metadata cannot be used; the session goes on without.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    #[error("room metadata is larger than {MAX_METADATA_BYTES} bytes")]
    TooLarge,
    #[error("room metadata is not JSON (line {line}, column {column})")]
    NotJson { line: usize, column: usize },
    #[error("room metadata is not a JSON object")]
    NotAnObject,
}

impl RoomContext {
    /// From room metadata as LiveKit hands it out; empty metadata is an empty context.
    ///
    /// # Errors
    /// What is no JSON object, or too large.
    pub fn from_metadata(metadata: &str) -> Result<Self, MetadataError> {
        if metadata.trim().is_empty() {
            return Ok(Self::default());
        }
        if metadata.len() > MAX_METADATA_BYTES {
            return Err(MetadataError::TooLarge);
        }
        match serde_json::from_str(metadata) {
            Ok(Json::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(MetadataError::NotAnObject),
            Err(error) => {
                Err(MetadataError::NotJson { line: error.line(), column: error.column() })
            }
        }
    }

    /// A field, if it is text that is not blank.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.0.get(field)?.as_str().filter(|text| !text.trim().is_empty())
    }
}

/// A prompt template that is known to compile.
#[derive(Debug, Clone)]
pub struct Prompt {
    file: SourceFile,
}

/// Why a template could not be rendered with a room's metadata.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {problem}")]
pub struct RenderError {
    pub file: String,
    pub line: usize,
    pub problem: String,
}

impl Prompt {
    /// Compiles the template and renders it once without metadata, which finds unknown filters,
    /// tests and functions too.
    ///
    /// # Errors
    /// What is wrong with the template, with its line.
    pub fn new(file: SourceFile) -> Result<Self, Box<Fault>> {
        let prompt = Self { file };
        match prompt.render(&RoomContext::default()) {
            Ok(text) if text.trim().is_empty() => {
                let fault = Fault::at(&prompt.file, 0..0, "prompt", "the prompt is empty");
                Err(Box::new(fault))
            }
            Ok(_) => Ok(prompt),
            Err(error) => {
                let span = prompt.file.line_span(error.line);
                Err(Box::new(Fault::at(&prompt.file, span, "prompt", error.problem)))
            }
        }
    }

    /// The path, or `built-in …`.
    pub fn label(&self) -> &str {
        self.file.label()
    }

    /// The system prompt: the template, then the instructions and the custom prompt that the room
    /// brings. What is not defined renders empty; metadata is never itself taken for a template.
    ///
    /// # Errors
    /// A template that these fields break (such as a filter on the wrong type), or that takes
    /// too long over them.
    pub fn render(&self, context: &RoomContext) -> Result<String, RenderError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        environment.set_fuel(Some(FUEL));
        let rendered = environment
            .template_from_named_str(self.label(), self.file.text())
            .and_then(|template| {
                let text = template.render(Serde(&context.0))?;
                Ok((text, template.undeclared_variables(false)))
            });
        let (text, used): (String, HashSet<String>) = rendered.map_err(|error| RenderError {
            file: self.label().to_owned(),
            line: error.line().unwrap_or(1),
            problem: problem(&error).into_owned(),
        })?;
        let parts = PARTS
            .into_iter()
            .filter(|part| !used.contains(*part))
            .filter_map(|part| context.text(part));
        let all: Vec<&str> = std::iter::once(text.trim()).chain(parts.map(str::trim)).collect();
        Ok(all.join(SEPARATOR))
    }
}

fn problem(error: &minijinja::Error) -> Cow<'static, str> {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()).into(),
        None => error.kind().to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::error::Origin;

    fn prompt(text: &str) -> Prompt {
        Prompt::new(SourceFile::new("prompts/a.md", text)).unwrap()
    }

    fn context(json: &str) -> RoomContext {
        RoomContext::from_metadata(json).unwrap()
    }

    #[test]
    fn the_parts_follow_the_prompt_in_their_order() {
        let metadata = r#"{"custom_prompt":"C","entity_instructions":"A",
                           "department_instructions":" B ","entity_id":"e1"}"#;
        let text = prompt("You serve {{ entity_id }}.\n").render(&context(metadata)).unwrap();
        assert_eq!(text, "You serve e1.\n\n---\n\nA\n\n---\n\nB\n\n---\n\nC");
    }

    #[test]
    fn a_part_that_the_template_uses_is_not_said_twice() {
        let text = prompt("P {{ custom_prompt }}").render(&context(r#"{"custom_prompt":"C"}"#));
        assert_eq!(text.unwrap(), "P C");
    }

    #[test]
    fn what_is_not_defined_renders_empty() {
        let text =
            prompt("a{{ nothing }}b{{ nothing.at.all }}c{% for x in y %}{{ x }}{% endfor %}");
        assert_eq!(text.render(&RoomContext::default()).unwrap(), "abc");
    }

    #[test]
    fn any_further_field_can_be_used() {
        let text = prompt("{% for id in participant_ids %}{{ id }} {% endfor %}{{ plan.name }}.");
        let metadata = r#"{"participant_ids":["a","b"],"plan":{"name":"gold"}}"#;
        assert_eq!(text.render(&context(metadata)).unwrap(), "a b gold.");
    }

    #[test]
    fn metadata_is_never_taken_for_a_template() {
        let text = prompt("P").render(&context(r#"{"custom_prompt":"{{ 7 * 6 }}"}"#)).unwrap();
        assert_eq!(text, "P\n\n---\n\n{{ 7 * 6 }}");
    }

    #[test]
    fn a_broken_template_is_a_fault_with_its_line() {
        for broken in ["one\ntwo {% if %}\n", "one\ntwo {{ x|nosuchfilter }}\n"] {
            let fault = Prompt::new(SourceFile::new("prompts/a.md", broken)).unwrap_err();
            assert_eq!(fault.origin, Origin::File { path: "prompts/a.md".into(), line: 2 });
        }
    }

    #[test]
    fn a_template_cannot_be_kept_busy() {
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}.{% endfor %}{% endfor %}";
        let fault = Prompt::new(SourceFile::new("prompts/a.md", endless)).unwrap_err();
        assert!(fault.problem.contains("fuel"), "{fault}");
    }

    #[test]
    fn metadata_that_is_no_object_is_refused() {
        assert_eq!(RoomContext::from_metadata(" ").unwrap(), RoomContext::default());
        assert_eq!(RoomContext::from_metadata("[1]"), Err(MetadataError::NotAnObject));
        assert_eq!(
            RoomContext::from_metadata("{\"a\": secret}"),
            Err(MetadataError::NotJson { line: 1, column: 7 })
        );
        let large = format!("\"{}\"", "x".repeat(MAX_METADATA_BYTES));
        assert_eq!(RoomContext::from_metadata(&large), Err(MetadataError::TooLarge));
    }
}
