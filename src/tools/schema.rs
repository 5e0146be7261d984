//! A model's arguments held against a tool's JSON Schema.
//!
//! What models get wrong is checked: types, required and unknown fields, choices, bounds, also inside
//! lists and objects. `pattern` and `format` are left to whoever is called: schemas come from servers
//! as well, and a regular expression of theirs could take for ever.

use std::cell::Cell;

use serde_json::Value;

/// Nesting that is followed; what is deeper passes.
const MAX_DEPTH: usize = 32;
/// Steps of one check, alternatives included; what comes after passes.
const MAX_STEPS: u32 = 10_000;

/// Whether `arguments` fit, or what is wrong with them, in words for the model.
///
/// # Errors
/// The first thing that does not fit.
pub fn check(arguments: &Value, schema: &Value) -> Result<(), String> {
    if !arguments.is_object() {
        return Err("not an object".into());
    }
    Checker { root: schema, steps: Cell::new(0) }.check(arguments, schema, "", 0)
}

struct Checker<'a> {
    root: &'a Value,
    steps: Cell<u32>,
}

impl Checker<'_> {
    fn check(&self, value: &Value, schema: &Value, at: &str, depth: usize) -> Result<(), String> {
        self.steps.set(self.steps.get() + 1);
        if depth > MAX_DEPTH || self.steps.get() > MAX_STEPS {
            return Ok(());
        }
        let name = || if at.is_empty() { "the object".to_owned() } else { format!("`{at}`") };
        if schema == &Value::Bool(false) {
            return Err(format!("{} is not allowed", name()));
        }
        if let Some(target) = schema["$ref"].as_str().and_then(|path| self.resolve(path)) {
            self.check(value, target, at, depth + 1)?;
        }
        has_type(value, &schema["type"])
            .map_err(|want| format!("{} must be of type {want}", name()))?;
        if let Some(choices) = schema["enum"].as_array()
            && !choices.iter().any(|choice| is_same(choice, value))
        {
            let choices: Vec<_> = choices.iter().take(20).map(Value::to_string).collect();
            return Err(format!("{} must be one of {}", name(), choices.join(", ")));
        }
        if let Some(only) = schema.get("const")
            && !is_same(only, value)
        {
            return Err(format!("{} must be {only}", name()));
        }
        self.combined(value, schema, at, depth)?;
        match value {
            Value::Object(_) => self.object(value, schema, at, depth),
            Value::Array(list) => {
                within(list.len() as f64, schema, ["minItems", "maxItems"], "elements", &name)?;
                list.iter().enumerate().try_for_each(|(nth, element)| {
                    self.check(element, &schema["items"], &format!("{at}[{nth}]"), depth + 1)
                })
            }
            Value::String(text) => {
                let length = text.chars().count() as f64;
                within(length, schema, ["minLength", "maxLength"], "characters", &name)
            }
            Value::Number(number) => number.as_f64().map_or(Ok(()), |number| {
                within(number, schema, ["minimum", "maximum"], "", &name)?;
                let bound = |key: &str| schema[key].as_f64();
                if bound("exclusiveMinimum").is_some_and(|least| number <= least)
                    || bound("exclusiveMaximum").is_some_and(|most| number >= most)
                {
                    return Err(format!("{} is out of bounds", name()));
                }
                Ok(())
            }),
            Value::Null | Value::Bool(_) => Ok(()),
        }
    }

    fn object(&self, value: &Value, schema: &Value, at: &str, depth: usize) -> Result<(), String> {
        let path =
            |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
        let Some(fields) = value.as_object() else { return Ok(()) };
        let required = schema["required"].as_array().into_iter().flatten();
        for name in required.filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                return Err(format!("`{}` is missing", path(name)));
            }
        }
        for (name, field) in fields {
            let known = &schema["properties"][name.as_str()];
            let others = &schema["additionalProperties"];
            let has_patterns = schema.get("patternProperties").is_some();
            let of = if known.is_null() && !has_patterns { others } else { known };
            if of == &Value::Bool(false) {
                return Err(format!("`{}` is unknown", path(name)));
            }
            self.check(field, of, &path(name), depth + 1)?;
        }
        Ok(())
    }

    fn combined(
        &self,
        value: &Value,
        schema: &Value,
        at: &str,
        depth: usize,
    ) -> Result<(), String> {
        for all in schema["allOf"].as_array().into_iter().flatten() {
            self.check(value, all, at, depth + 1)?;
        }
        for key in ["anyOf", "oneOf"] {
            let Some(ways) = schema[key].as_array() else { continue };
            let mut problem = None;
            let fits = ways.iter().any(|way| match self.check(value, way, at, depth + 1) {
                Ok(()) => true,
                Err(wrong) => {
                    problem.get_or_insert(wrong);
                    false
                }
            });
            if let Some(problem) = problem.filter(|_| !fits) {
                return Err(problem);
            }
        }
        Ok(())
    }

    /// `#/$defs/Name`, within this schema alone.
    fn resolve(&self, path: &str) -> Option<&Value> {
        self.root.pointer(path.strip_prefix('#')?)
    }
}

fn has_type(value: &Value, kind: &Value) -> Result<(), String> {
    let is = |kind: &str| match kind {
        "string" => value.is_string(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|it| it.fract() == 0.0)
        }
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        _ => true,
    };
    match kind {
        Value::String(kind) if !is(kind) => Err(kind.clone()),
        Value::Array(kinds) => {
            let kinds: Vec<&str> = kinds.iter().filter_map(Value::as_str).collect();
            let fits = kinds.is_empty() || kinds.iter().any(|kind| is(kind));
            if fits { Ok(()) } else { Err(kinds.join(" or ")) }
        }
        _ => Ok(()),
    }
}

/// Numbers are the same however they are written: `1` is `1.0`.
fn is_same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| a.total_cmp(&b).is_eq())
}

fn within(
    size: f64,
    schema: &Value,
    [least, most]: [&str; 2],
    of: &str,
    name: &impl Fn() -> String,
) -> Result<(), String> {
    let text = |word: &str, bound: f64| format!("{} must be {word} {bound} {of}", name());
    match (schema[least].as_f64(), schema[most].as_f64()) {
        (Some(least), _) if size < least => Err(text("at least", least).trim_end().to_owned()),
        (_, Some(most)) if size > most => Err(text("at most", most).trim_end().to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_does_not_fit_is_told_with_its_place() {
        let schema = json!({
            "type": "object",
            "required": ["guests"],
            "additionalProperties": false,
            "properties": {
                "guests": {"type": "integer", "minimum": 1, "maximum": 12},
                "room": {"enum": ["inside", "terrace"]},
                "when": {"type": ["string", "null"], "minLength": 5, "maxLength": 5},
                "names": {"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/Name"}},
                "at": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                "share": {"exclusiveMinimum": 0},
            },
            "$defs": {"Name": {"type": "object", "required": ["last"],
                               "properties": {"last": {"type": "string"}}}},
        });
        for right in [
            json!({"guests": 4}),
            json!({"guests": 4.0, "room": "inside", "when": null, "at": 3, "share": 0.1}),
            json!({"guests": 12, "when": "18:30", "names": [{"last": "Ng"}]}),
        ] {
            assert_eq!(check(&right, &schema), Ok(()), "{right}");
        }
        for (wrong, problem) in [
            (json!([]), "not an object"),
            (json!({}), "`guests` is missing"),
            (json!({"guests": "four"}), "`guests` must be of type integer"),
            (json!({"guests": 4.5}), "`guests` must be of type integer"),
            (json!({"guests": 0}), "`guests` must be at least 1"),
            (json!({"guests": 13}), "`guests` must be at most 12"),
            (json!({"guests": 1, "gests": 2}), "`gests` is unknown"),
            (json!({"guests": 1, "room": "roof"}), "`room` must be one of \"inside\", \"terrace\""),
            (json!({"guests": 1, "when": "6"}), "`when` must be at least 5 characters"),
            (json!({"guests": 1, "when": 6}), "`when` must be of type string or null"),
            (
                json!({"guests": 1, "names": [{"last": 1}]}),
                "`names[0].last` must be of type string",
            ),
            (json!({"guests": 1, "names": [{}]}), "`names[0].last` is missing"),
            (json!({"guests": 1, "names": [1, 2, 3]}), "`names` must be at most 2 elements"),
            (json!({"guests": 1, "at": true}), "`at` must be of type string"),
            (json!({"guests": 1, "share": 0}), "`share` is out of bounds"),
        ] {
            assert_eq!(check(&wrong, &schema), Err(problem.to_owned()), "{wrong}");
        }
    }

    #[test]
    fn a_schema_that_refers_to_itself_comes_to_an_end() {
        let schema = json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}], "allOf": [{"$ref": "#"}]});
        let _ = check(&json!({"a": 1}), &schema);
    }

    proptest! {
        #[test]
        fn what_is_no_schema_lets_everything_pass(word in "[a-z]{1,8}") {
            for schema in [Value::Null, json!(true), json!(word), json!([word]), json!({word.clone(): 1})] {
                prop_assert_eq!(check(&json!({"a": [1, null]}), &schema), Ok(()));
            }
        }
    }
}
