//! Reads the members of a JSON object one by one, so that every complaint names the member and what was expected of it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::limits::{LimitError, LimitSet};

/// What is wrong with a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FieldError {
    /// No bytes at all.
    #[error("the message is empty, expected a JSON object")]
    Empty,
    /// Not JSON.
    #[error("the message is not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    /// JSON, but no object.
    #[error("expected a JSON object, got {0}")]
    NotAnObject(&'static str),
    /// A required member is absent or null.
    #[error("field `{field}` is missing, expected {expected}")]
    Missing {
        /// JSON key.
        field: &'static str,
        /// What belongs there.
        expected: &'static str,
    },
    /// A member has the wrong JSON type.
    #[error("field `{field}` is {found}, expected {expected}")]
    WrongType {
        /// JSON key.
        field: &'static str,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A member has the right type but no acceptable value.
    #[error("field `{field}`: {reason}")]
    Invalid {
        /// JSON key.
        field: &'static str,
        /// What is wrong with the value.
        reason: String,
    },
}

pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn parse(payload: &[u8]) -> Result<Self, FieldError> {
        if payload.is_empty() {
            return Err(FieldError::Empty);
        }
        match serde_json::from_slice(payload)? {
            Value::Object(members) => Ok(Self(members)),
            other => Err(FieldError::NotAnObject(type_name(&other))),
        }
    }

    /// The member, unless it is absent or null.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.0.remove(field).filter(|value| !value.is_null())
    }

    pub(super) fn required(&mut self, field: &'static str, expected: &'static str) -> Result<Value, FieldError> {
        self.take(field).ok_or(FieldError::Missing { field, expected })
    }

    pub(super) fn string(&mut self, field: &'static str, expected: &'static str) -> Result<String, FieldError> {
        match self.required(field, expected)? {
            Value::String(text) if !text.is_empty() => Ok(text),
            Value::String(_) => Err(FieldError::WrongType {
                field,
                expected,
                found: "an empty string",
            }),
            other => Err(wrong_type(field, expected, &other)),
        }
    }

    /// A string that may be absent, null or empty; all three are `None`.
    pub(super) fn optional_string(&mut self, field: &'static str) -> Result<Option<String>, FieldError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(other) => Err(wrong_type(field, "a string", &other)),
        }
    }

    pub(super) fn optional_bool(&mut self, field: &'static str) -> Result<Option<bool>, FieldError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(field, "true or false", &other)),
        }
    }

    pub(super) fn optional_count(&mut self, field: &'static str) -> Result<Option<u64>, FieldError> {
        const EXPECTED: &str = "a whole number, zero or more";
        self.take(field)
            .map(|value| value.as_u64().ok_or_else(|| wrong_type(field, EXPECTED, &value)))
            .transpose()
    }

    /// An array of strings; absent and null are empty.
    pub(super) fn strings(&mut self, field: &'static str) -> Result<Vec<String>, FieldError> {
        const EXPECTED: &str = "an array of strings";
        match self.take(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .into_iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text),
                    other => Err(FieldError::Invalid {
                        field,
                        reason: format!("holds {}, expected {EXPECTED}", type_name(&other)),
                    }),
                })
                .collect(),
            Some(other) => Err(wrong_type(field, EXPECTED, &other)),
        }
    }

    /// An object whose members are strings; absent and null are empty.
    pub(super) fn string_map(&mut self, field: &'static str) -> Result<BTreeMap<String, String>, FieldError> {
        const EXPECTED: &str = "an object of strings";
        match self.take(field) {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(members)) => members
                .into_iter()
                .map(|(key, value)| match value {
                    Value::String(text) => Ok((key, text)),
                    other => Err(FieldError::Invalid {
                        field,
                        reason: format!("`{key}` is {}, expected {EXPECTED}", type_name(&other)),
                    }),
                })
                .collect(),
            Some(other) => Err(wrong_type(field, EXPECTED, &other)),
        }
    }

    /// An object of limits; absent and null are none.
    pub(super) fn limits(&mut self, field: &'static str) -> Result<LimitSet, FieldError> {
        let invalid = |error: LimitError| FieldError::Invalid {
            field,
            reason: error.to_string(),
        };
        match self.object(field)? {
            None => Ok(LimitSet::default()),
            Some(Self(members)) => LimitSet::from_json(members).map_err(invalid),
        }
    }

    /// An object, read with the same rules; absent and null are `None`.
    pub(super) fn object(&mut self, field: &'static str) -> Result<Option<Self>, FieldError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some(Self(members))),
            Some(other) => Err(wrong_type(field, "an object", &other)),
        }
    }
}

fn wrong_type(field: &'static str, expected: &'static str, found: &Value) -> FieldError {
    FieldError::WrongType {
        field,
        expected,
        found: type_name(found),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
